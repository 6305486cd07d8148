"""The recorder: the same result as from categorise and from caches; together with patching, other hooks, and errors."""

from __future__ import annotations

import warnings
import weakref
from contextlib import nullcontext

import pytest
import torch

import tl_neuronshare as ns
from support import zoo
from tl_neuronshare import models

LANGUAGES = list(zoo.LONGER)
POSITIONS = ["last", "any", "all", -2]
SITES = [("bloom", "post"), ("opt", "post"), ("llama", "post"), ("llama", "gate"), ("llama", "up")]
DEEP = pytest.param("gpt2", "post", marks=pytest.mark.slow)  # twelve layers: 25 s at the four positions


@pytest.fixture
def longer() -> ns.ParallelPrompts:
    """Three texts in five languages, each of several tokens."""
    return ns.ParallelPrompts(zoo.LONGER)


def padded(model, prompts, language, side):
    """One language's tokens and their mask, padded as a user would: with the padding token, on either side."""
    rows = models.tokenise(model, prompts.prompts[language])
    longest = max(map(len, rows))
    tokens, mask = (
        torch.full((len(rows), longest), model.tokenizer.pad_token_id),
        torch.zeros(len(rows), longest).long(),
    )
    for row, ids in enumerate(rows):
        place = slice(longest - len(ids), longest) if side == "left" else slice(0, len(ids))
        tokens[row, place], mask[row, place] = torch.tensor(ids), 1
    return tokens, mask


def recorded(model, prompts, *, side="left", run=None, **options):
    """What a recorder finds in the user's own runs, with one batch for each language."""
    recorder = ns.SharingRecorder(model, prompts.languages, len(prompts), **options)
    for language in prompts.languages:
        tokens, mask = padded(model, prompts, language, side)
        hooks = recorder.fwd_hooks(language, range(len(prompts)), mask, tokens=tokens)
        if run is None:
            model.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks)
        else:
            run(tokens, mask, hooks)
    return recorder.sharing()


# The three ways to the same result.


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(("name", "site"), [*SITES, DEEP])
def test_recorder_caches_and_categorise_agree(animals, name, site, position, backend, longer):
    model, options = animals.lens(name, backend), {"site": site, "position": position, "threshold": [0.0, 0.1]}
    expected = ns.categorise(model, longer, **options)
    for side in ("left", "right"):
        assert recorded(model, longer, side=side, **options) == expected
        batches = {language: padded(model, longer, language, side) for language in LANGUAGES}
        caches = {la: model.run_with_cache(tokens, attention_mask=mask)[1] for la, (tokens, mask) in batches.items()}
        found = ns.categorise_caches(
            caches,
            lengths={language: mask.sum(1).tolist() for language, (_, mask) in batches.items()},
            tokens={language: tokens for language, (tokens, _) in batches.items()},
            padding_side=side,
            **options,
        )
        assert found == expected
    assert expected[0.0] != expected[0.1]


def test_one_batch_may_hold_several_languages(bloom, longer):
    """The same batch as in `categorise`, so the same bits in any precision."""
    rows = [ids for language in LANGUAGES for ids in models.tokenise(bloom, longer.prompts[language])]
    tokens, mask = models.left_padded(rows)
    recorder = ns.SharingRecorder(bloom, LANGUAGES, 3, position="any")
    languages = [language for language in LANGUAGES for _ in range(3)]
    hooks = recorder.fwd_hooks(languages, [0, 1, 2] * 5, mask, tokens=tokens)
    bloom.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks)
    assert recorder.sharing() == ns.categorise(bloom, longer, position="any", batch_size=15)


def test_results_say_what_was_run(bloom, longer):
    recorder = ns.SharingRecorder(bloom, LANGUAGES, 3)
    for language in LANGUAGES:
        tokens, mask = padded(bloom, longer, language, "left")
        with bloom.hooks(fwd_hooks=recorder.fwd_hooks(language, slice(None), mask)):
            bloom(tokens, attention_mask=mask)
    assert recorder.sharing().metadata["fingerprint"].endswith("-unknown")
    found, expected = recorder.sharing(prompts=longer), ns.categorise(bloom, longer)
    assert found.metadata["fingerprint"] == expected.metadata["fingerprint"]
    assert found.prompt_hashes == expected.prompt_hashes
    assert found.metadata["borderline_fraction"] == pytest.approx(expected.metadata["borderline_fraction"], abs=1e-3)


# Together with the user's hooks.


def silence(tensor, hook):
    """A patching hook that sets every neuron to -1, so that none is activated."""
    return torch.full_like(tensor, -1)


def test_a_patch_in_an_outer_context_is_seen_whatever_the_order(bloom, longer):
    """After a patch in layer 1, nothing is activated there, and layer 2 changes."""
    plain = recorded(bloom, longer).activated()
    name = "blocks.1.mlp.hook_post"

    def inside(tokens, mask, hooks):
        with bloom.hooks(fwd_hooks=[(name, silence)]):
            bloom.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks)

    def outside(tokens, mask, hooks):
        with bloom.hooks(fwd_hooks=hooks):
            bloom.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=[(name, silence)])

    before, after = recorded(bloom, longer, run=inside).activated(), recorded(bloom, longer, run=outside).activated()
    assert not before[:, :, 1].any()  # the patch came first: the recorder sees it
    assert torch.equal(after[:, :, 1], plain[:, :, 1])  # the recorder came first: it sees what was there
    for found in (before, after):
        assert torch.equal(found[:, :, 0], plain[:, :, 0])
        assert not torch.equal(found[:, :, 2], plain[:, :, 2])
    assert torch.equal(before[:, :, 2], after[:, :, 2])


@pytest.mark.parametrize("ours_first", [True, False])
def test_in_the_same_call_as_the_user_s_hooks(bloom, longer, ours_first):
    seen = []

    def watch(tensor, hook):
        seen.append(tensor.clone())

    def run(tokens, mask, hooks):
        theirs = [("blocks.0.mlp.hook_post", watch), ("blocks.0.mlp.hook_post", silence)]
        both = hooks + theirs if ours_first else theirs + hooks
        bloom.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=both)

    found, plain = recorded(bloom, longer, run=run).activated(), recorded(bloom, longer).activated()
    assert torch.equal(found[:, :, 0], plain[:, :, 0]) if ours_first else not found[:, :, 0].any()
    assert not torch.equal(found[:, :, 1], plain[:, :, 1])
    assert len(seen) == 5
    assert all((tensor > 0).any() for tensor in seen)  # our hooks edited nothing, not even in place


def test_with_transformer_lens_patching(bloom):
    """A patching sweep under our hooks: the metric asks, for each patched run, what is all-shared now."""
    from transformer_lens import patching

    clean, corrupted = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[5, 6, 7, 9]])
    recorder = ns.SharingRecorder(bloom, ["clean", "corrupted"], 1)
    bloom.run_with_hooks(clean, fwd_hooks=recorder.fwd_hooks("clean", [0]))
    _, cache = bloom.run_with_cache(clean)
    shares, kept = [], []

    def metric(logits):
        sharing = recorder.sharing()
        kept.append(sharing)
        shares.append(sharing.summary().query("type == 'all-shared'")["mean"].to_numpy())
        return logits[0, -1, 3]

    with bloom.hooks(fwd_hooks=recorder.fwd_hooks("corrupted", [0])):
        patched = patching.get_act_patch_resid_pre(bloom, corrupted, cache, metric)
    assert patched.shape == (3, 4)
    # By hand: what the model activates with one position of one layer's input from the clean run.
    for index, (layer, position) in enumerate((layer, position) for layer in range(3) for position in range(4)):

        def put(tensor, hook, layer=layer, position=position):
            tensor = tensor.clone()
            tensor[:, position] = cache["resid_pre", layer][:, position]
            return tensor

        with bloom.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", put)]):
            _, by_hand = bloom.run_with_cache(corrupted)
        for number in range(3):
            post = f"blocks.{number}.mlp.hook_post"
            both = (by_hand[post][0, -1] > 0) & (cache[post][0, -1] > 0)
            assert shares[index][number] == pytest.approx(100 * both.float().mean().item(), abs=1e-4)
    # The last token is in all layers what it was in the clean run, once its input of layer 0 was put there.
    assert (kept[3].activated()[:, 0] == kept[3].activated()[:, 1]).all()
    assert kept[0] != kept[3]  # results handed out stay as they are while the recorder goes on


def test_on_a_subclass_of_the_model(animals, longer):
    """A user's own class, with one more method and a forward pass that counts."""
    model = animals.lens("bloom", "bridge")

    class Counting(type(model)):
        calls = 0

        def forward(self, *args, **kwargs):
            type(self).calls += 1
            return super().forward(*args, **kwargs)

    expected, original = ns.categorise(model, longer), type(model)
    model.__class__ = Counting
    try:
        assert ns.categorise(model, longer).metadata["model_class"] == "Counting"  # it is verified as a different model
        Counting.calls = 0
        assert ns.categorise(model, longer) == expected
        assert recorded(model, longer) == expected
        n_batches = expected.metadata["batches"]
        assert Counting.calls == n_batches + 5
    finally:
        model.__class__ = original


def test_on_a_subclass_of_hooked_transformer(animals, longer):
    if not models.has_hooked_transformer():
        pytest.skip("TransformerLens 4 has one model class only")
    from transformer_lens import HookedTransformer

    class Mine(HookedTransformer):
        pass

    base = animals.lens("bloom", "hooked")
    mine = Mine(base.cfg, base.tokenizer)
    mine.load_state_dict(base.state_dict())
    assert ns.categorise(mine, longer) == ns.categorise(base, longer)


def test_in_compatibility_mode_which_calls_a_hook_under_each_of_its_names(animals, longer):
    """With folded norms the activations are the same, up to rounding. A prompt of one token is recorded too."""
    model = ns.load_model(animals.directory("llama"), backend="bridge", device="cpu")
    expected = ns.categorise(model, longer)
    single = ns.ParallelPrompts({"en": ["a"], "de": ["b"]})
    expected_single = ns.categorise(model, single, prepend_bos=False)
    model.enable_compatibility_mode()
    calls = []
    model.run_with_hooks(
        torch.tensor([[5, 6]]), fwd_hooks=[("blocks.0.mlp.hook_post", lambda t, hook: calls.append(hook.name))]
    )
    for found in (ns.categorise(model, longer), recorded(model, longer)):
        assert (found.activated() != expected.activated()).sum() <= 2
    recorder = ns.SharingRecorder(model, ["en", "de"], 1)
    for language, (text,) in single.prompts.items():
        model.run_with_hooks(model.to_tokens(text, prepend_bos=False), fwd_hooks=recorder.fwd_hooks(language, [0]))
    assert (recorder.sharing().activated() != expected_single.activated()).sum() <= 2
    assert {name.split(".")[0] for name in calls} == {"blocks"}


@pytest.mark.parametrize("mode", ["gradients", "no_grad", "inference_mode"])
def test_with_and_without_gradients(bloom, longer, mode):
    """Recording does not change gradients. A record made in inference mode can be replaced outside of it."""
    expected = ns.categorise(bloom, longer)
    context = {"gradients": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}[mode]
    tokens, mask = padded(bloom, longer, "en", "left")
    gradients = []
    for watched in (False, True):
        recorder = ns.SharingRecorder(bloom, ["en", "de"], 3)
        with context():
            logits = bloom.run_with_hooks(
                tokens, attention_mask=mask, fwd_hooks=recorder.fwd_hooks("en", range(3), mask) if watched else []
            )
        if mode == "gradients":
            bloom.zero_grad()
            logits[:, -1].square().sum().backward()
            gradients.append([None if p.grad is None else p.grad.clone() for p in bloom.parameters()])
            bloom.zero_grad()
    if mode == "gradients":
        assert any(gradient is not None and gradient.any() for gradient in gradients[0])
        for alone, seen in zip(*gradients, strict=True):
            assert (alone is None and seen is None) or torch.equal(alone, seen)
    others, other_mask = padded(bloom, longer, "de", "left")
    for way in (context, nullcontext, context, nullcontext):
        with way():
            hooks = recorder.fwd_hooks("de", range(3), other_mask)
            bloom.run_with_hooks(others, attention_mask=other_mask, fwd_hooks=hooks)
            assert torch.equal(recorder.sharing().activated(), expected.activated()[:, :2])


# Generation.


@pytest.mark.parametrize("use_past_kv_cache", [True, False])
@pytest.mark.parametrize("position", ["last", "any"])
def test_generate_records_the_prompt_and_leaves_decoding_alone(animals, backend, use_past_kv_cache, position):
    model = animals.lens("gpt2", backend)
    tokens = torch.randint(1, 400, (2, 6), generator=torch.Generator().manual_seed(0))
    recorder = ns.SharingRecorder(model, ["en", "de"], 2, position=position)
    generated = {}
    for language, batch in {"en": tokens, "de": tokens.flip(1)}.items():
        with model.hooks(fwd_hooks=recorder.fwd_hooks(language, [0, 1], tokens=batch)):
            generated[language] = model.generate(
                batch,
                max_new_tokens=4,
                do_sample=False,
                use_past_kv_cache=use_past_kv_cache,
                stop_at_eos=False,
                verbose=False,
            )
    assert generated["en"].shape == (2, 10)
    prompts_alone = ns.SharingRecorder(model, ["en", "de"], 2, position=position)
    for language, batch in {"en": tokens, "de": tokens.flip(1)}.items():
        model.run_with_hooks(batch, fwd_hooks=prompts_alone.fwd_hooks(language, [0, 1], tokens=batch))
    assert recorder.sharing() == prompts_alone.sharing()
    plain = model.generate(
        tokens, max_new_tokens=4, do_sample=False, use_past_kv_cache=use_past_kv_cache, stop_at_eos=False, verbose=False
    )
    assert torch.equal(generated["en"], plain)  # recording changes nothing


def test_a_prompt_of_one_token_is_recorded_before_what_it_generates(animals, backend):
    model = animals.lens("gpt2", backend)
    recorder = ns.SharingRecorder(model, ["en", "de"], 1)
    for language, token in {"en": 7, "de": 9}.items():
        with model.hooks(fwd_hooks=recorder.fwd_hooks(language, [0])):
            model.generate(torch.tensor([[token]]), max_new_tokens=3, do_sample=False, stop_at_eos=False, verbose=False)
    alone = ns.SharingRecorder(model, ["en", "de"], 1)
    for language, token in {"en": 7, "de": 9}.items():
        model.run_with_hooks(torch.tensor([[token]]), fwd_hooks=alone.fwd_hooks(language, [0]))
    assert recorder.sharing() == alone.sharing()


# What goes wrong half-way.


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_stops_half_way_is_not_taken_for_recorded_and_can_be_made_again(bloom, longer, error):
    def stop(tensor, hook):
        raise error("half-way")

    recorder = ns.SharingRecorder(bloom, LANGUAGES, 3)
    counts = {name: len(hook.fwd_hooks) for name, hook in bloom.hook_dict.items()}
    batches = {language: padded(bloom, longer, language, "left") for language in LANGUAGES}
    hooks = {la: recorder.fwd_hooks(la, range(3), mask) for la, (_, mask) in batches.items()}
    for language, (tokens, mask) in batches.items():
        theirs = [("blocks.1.mlp.hook_post", stop)] if language == "ru" else []
        with pytest.raises(error, match="half-way") if theirs else nullcontext():
            bloom.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks[language] + theirs)
    assert {name: len(hook.fwd_hooks) for name, hook in bloom.hook_dict.items()} == counts
    message = r"'ru', example 0: blocks\.2\.mlp\.hook_post did not fire, so that 3 of 15 prompts are not recorded"
    with pytest.raises(ns.NeuronShareError, match=message):
        recorder.sharing()
    tokens, mask = batches["ru"]
    bloom.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks["ru"])
    expected = ns.categorise(bloom, longer)
    assert recorder.sharing() == expected
    # After a whole run and one that stops, the record would mix two runs, so it is void.
    with pytest.raises(error):
        bloom.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks["ru"] + [("blocks.1.mlp.hook_post", stop)])
    with pytest.raises(ns.NeuronShareError, match="3 of 15 prompts are not recorded"):
        recorder.sharing()


@pytest.mark.parametrize(
    ("position", "chunk", "reductions"),
    [
        ("last", 1 << 20, [3]),  # all three layers together
        ("last", 14 * 128, [2, 1]),  # two fill a chunk: 7 prompts of 128 neurons each
        ("last", 3 * 128, [1, 1, 2, 1, 2, 1, 1]),  # pieces of 3, 3 and 1 prompts; the last one waits for the next layer
        ("any", 1 << 20, [1] * 3),  # all tokens of a layer do not wait
    ],
)
def test_layers_are_reduced_together_and_fetched_once(bloom, longer, monkeypatch, position, chunk, reductions):
    """How many pieces are reduced at a time changes nothing; what they give leaves a GPU in one copy a batch."""
    from tl_neuronshare.running import recording

    options = {"position": position, "threshold": [0.0, 0.1], "batch_size": 7}
    expected = ns.categorise(bloom, longer, **options)
    reduced, fetched = [], []
    pass_ = recording.RecordedPass
    reduce, store = pass_._reduce, pass_._store
    monkeypatch.setattr(recording, "_CHUNK", chunk)
    monkeypatch.setattr(pass_, "_reduce", lambda self: (reduced.append(len(self._waiting)), reduce(self)))
    monkeypatch.setattr(pass_, "_store", lambda self: (fetched.append(len(self._reduced)), store(self)))
    assert ns.categorise(bloom, longer, **options) == expected
    assert len(fetched) == -(-15 // 7)
    assert [each for each in reduced if each][: len(reductions)] == reductions


@pytest.mark.parametrize("kind", ["bloom", "neox-1-8"])
def test_a_rerun_that_fails_voids_what_was_recorded(animals, backend, kind):
    """Also with one layer, where a new run cannot be recognised by its first layer."""
    model = animals.lens(kind, backend)
    recorder = ns.SharingRecorder(model, ["en", "de"], 1)
    tokens = torch.tensor([[5, 6, 7]])
    hooks = {language: recorder.fwd_hooks(language, [0]) for language in ("en", "de")}
    for of_language in hooks.values():
        model.run_with_hooks(tokens, fwd_hooks=of_language)
    before = recorder.sharing()
    spoil = [(recorder.layers[-1].name, lambda tensor, hook: tensor * float("nan"))]
    with pytest.raises(ns.NeuronShareError, match="'de', example 0: NaN"):
        model.run_with_hooks(tokens, fwd_hooks=spoil + hooks["de"])
    with pytest.raises(ns.NeuronShareError, match="1 of 2 prompts are not recorded"):
        recorder.sharing()
    model.run_with_hooks(tokens.flip(1), fwd_hooks=hooks["de"])
    assert recorder.sharing() != before
    assert torch.equal(before.activated()[:, 0], before.activated()[:, 1])  # handed out earlier and not changed


def test_hooks_are_for_one_batch_and_longer_prompts_are_not_taken_for_decoding(bloom):
    """Without a key-value cache a step has one token more than the last; a larger jump means a different prompt."""
    recorder = ns.SharingRecorder(bloom, ["en", "de"], 1)
    hooks = recorder.fwd_hooks("en", [0])
    for n_tokens in (4, 5, 6, 1, 1, 7, 4, 5):  # two prompts of four tokens, and steps after each
        bloom.run_with_hooks(torch.full((1, n_tokens), 7), fwd_hooks=hooks)
    with pytest.raises(ns.NeuronShareError, match=r"of shape \(1, 9, 128\), not \(1, 4, 128\) .*for one batch only"):
        bloom.run_with_hooks(torch.full((1, 9), 7), fwd_hooks=hooks)


# Padding without a mask.


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_list_of_strings_that_transformer_lens_pads(animals, name, backend, longer):
    """With padding on the right, the last token is padding. Without tokens we warn, with tokens we refuse."""
    model = animals.lens(name, backend)
    texts = list(longer.prompts["en"])
    recorder = ns.SharingRecorder(model, LANGUAGES, 3)
    with pytest.warns(UserWarning, match="Several prompts without attention_mask and tokens are taken to be unpadded"):
        recorder.fwd_hooks("en", range(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorder.fwd_hooks("en", range(3))  # warned only once
        recorder.fwd_hooks("en", [0])  # a single prompt has no padding
    for side in ("left", "right"):
        tokens = padded(model, longer, "en", side)[0]
        with pytest.raises(ns.NeuronShareError, match=f"'en', example .: the tokens are padded on the {side}.*give"):
            recorder.fwd_hooks("en", range(3), tokens=tokens)
    caches = {language: model.run_with_cache(texts)[1] for language in ("en", "de")}
    tokens = {language: model.to_tokens(texts) for language in caches}
    with pytest.raises(ns.NeuronShareError, match=r"the tokens are padded on the .*\(for caches, give lengths\)"):
        ns.categorise_caches(caches, tokens=tokens)


# Special tokens in the user's own run.


def test_some_batches_with_tokens_and_some_without_are_no_result(animals, backend, longer):
    model = animals.lens("bloom", backend)
    recorder = ns.SharingRecorder(model, ["en", "de"], 3, position="any")
    for language in ("en", "de"):
        tokens, mask = padded(model, longer, language, "left")
        given = tokens if language == "en" else None
        hooks = recorder.fwd_hooks(language, range(3), mask, tokens=given)
        model.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks)
    with pytest.raises(ns.NeuronShareError, match="'de', example 0: recorded without tokens.*for all or for none"):
        recorder.sharing()
    model.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=recorder.fwd_hooks("de", range(3), mask, tokens=tokens))
    expected = ns.categorise(model, longer.select(["en", "de"]), position="any")
    assert recorder.sharing() == expected
    both = ns.NeuronSharing.concatenate([recorder.sharing(), expected])
    assert len(both) == 6  # a recorder does not know prepend_bos, and does not claim to


def test_without_tokens_the_bos_counts_and_that_is_said_once(animals, backend, longer):
    model = animals.lens("llama", backend)
    recorder = ns.SharingRecorder(model, LANGUAGES, 3, site="post", position="all")
    with pytest.warns(
        UserWarning, match="position='all' without tokens counts special tokens too.*pass tokens="
    ) as said:
        hooks = {la: recorder.fwd_hooks(la, range(3), padded(model, longer, la, "left")[1]) for la in LANGUAGES}
    assert len(said) == 1
    for language in LANGUAGES:
        tokens, mask = padded(model, longer, language, "left")
        model.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=hooks[language])
    with_bos = recorder.sharing()
    assert with_bos.metadata["special_tokens_left_out"] == []
    without = ns.categorise(model, longer, position="all")
    assert without.metadata["special_tokens_left_out"] == [0]
    assert not (with_bos.activated() & ~without.activated()).any()  # at every token, and at the BOS too
    assert with_bos != without


def test_models_that_begin_without_bos_are_not_warned_about(bloom, longer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorder = ns.SharingRecorder(bloom, LANGUAGES, 3, position="any")
        for language in LANGUAGES:
            tokens, mask = padded(bloom, longer, language, "right")
            bloom.run_with_hooks(tokens, attention_mask=mask, fwd_hooks=recorder.fwd_hooks(language, range(3), mask))
    assert recorder.sharing() == ns.categorise(bloom, longer, position="any")


def test_neither_model_nor_activations_outlive_a_result(animals, backend):
    """A result keeps bits, but not the model."""
    model = ns.load_model(animals.directory("bloom"), backend=backend, device="cpu")
    recorder = ns.SharingRecorder(model, ["en", "de"], 1)
    for language in ("en", "de"):
        model.run_with_hooks(torch.tensor([[5, 6]]), fwd_hooks=recorder.fwd_hooks(language, [0]))
    sharing, weights = recorder.sharing(), weakref.ref(next(model.parameters()))
    del model, recorder
    import gc

    gc.collect()
    assert weights() is None
    assert len(sharing) == 1


@pytest.mark.usefixtures("as_users_run_it")
def test_positions_before_a_prompt_s_first_token(bloom):
    prompts = ns.ParallelPrompts({"en": ["12345", "12"], "de": ["123", "1234"]}, examples=["long", "short"])
    message = r"'en', example 'short': the prompt has 2 token\(s\), but position=-3 needs 3; use another position"
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.categorise(bloom, prompts, position=-3)
    recorder = ns.SharingRecorder(bloom, ["en", "de"], 2, position=-3)
    with pytest.raises(ns.NeuronShareError, match="'de', example 1: the prompt has 2 token.*position=-3 needs 3"):
        recorder.fwd_hooks("de", [0, 1], torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]]))


RECORDERS = {
    "one language": ((["en"], 2), {}, r"languages=\['en'\]; give a list of at least two names"),
    "a language twice": ((["en", "en"], 2), {}, "a list of at least two names, all different"),
    "a string of languages": (("en", 2), {}, "languages='en'; give a list of at least two"),
    "no examples": ((["en", "de"], 0), {}, "n_examples=0; give a whole number, at least 1"),
    "examples for their number": ((["en", "de"], ["a"]), {}, r"n_examples=\['a'\]; give a whole number"),
    "position": ((["en", "de"], 2), {"position": 1}, "position=1 is unknown"),
    "site": ((["en", "de"], 2), {"site": "pre"}, "site='pre' is unknown"),
    "threshold": ((["en", "de"], 2), {"threshold": "0"}, "threshold='0' is not a finite number"),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("arguments", "options", "message"), RECORDERS.values(), ids=RECORDERS)
def test_recorders(bloom, arguments, options, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.SharingRecorder(bloom, *arguments, **options)


BATCHES = {
    "language": (("fr", [0]), {}, "language='fr' for 1 examples; give one of en, de"),
    "languages for fewer rows": ((["en"], [0, 1]), {}, r"language=\['en'\] for 2 examples; give one of en, de, or one"),
    "no examples": (("en", []), {}, r"examples=\[\] selects no examples"),
    "an empty slice": (("en", slice(3, 3)), {}, "selects no examples"),
    "one example by number": (("en", 1), {}, "examples=1 selects no examples; give their numbers"),
    "an example that is not there": (("en", [0, 2]), {}, "There is no example 2; there are 2, counted from 0"),
    "counting from the end": (("en", [-1]), {}, "There is no example -1"),
    "an example twice": (("en", [1, 1]), {}, "an example twice in one language"),
    "a mask of another batch": (
        ("en", [0, 1], torch.ones(3, 4).long()),
        {},
        r"attention_mask has shape \(3, 4\) for 2",
    ),
    "a mask of one row": (("en", [0], torch.ones(4).long()), {}, r"attention_mask has shape \(4,\) for 1 examples"),
    "tokens of another batch": (("en", [0]), {"tokens": torch.ones(2, 4).long()}, r"tokens has shape \(2, 4\) for 1"),
    "mask and tokens": (
        ("en", [0], torch.ones(1, 4).long()),
        {"tokens": torch.ones(1, 5).long()},
        r"attention_mask has shape \(1, 4\), but tokens have \(1, 5\)",
    ),
    "a mask to be added": (("en", [0]), {"attention_mask": torch.tensor([[0.0, -1e9]])}, "values that are not 0 or 1"),
    "examples as floats": (("en", [0.0]), {}, "There is no example 0.0"),
    "an empty row": (("en", [0, 1], torch.tensor([[1, 1], [0, 0]])), {}, "'en', example 1: the prompt has 0 token"),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("arguments", "options", "message"), BATCHES.values(), ids=BATCHES)
def test_batches_of_a_recorder(bloom, arguments, options, message):
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.SharingRecorder(bloom, ["en", "de"], 2).fwd_hooks(*arguments, **options)


@pytest.mark.usefixtures("as_users_run_it")
def test_runs_that_are_not_the_batch_that_was_announced(bloom):
    """A different number of prompts is never broadcast, and a different length is never taken for a decoding step."""
    recorder = ns.SharingRecorder(bloom, ["en", "de"], 2)
    hooks = recorder.fwd_hooks("en", [0, 1], torch.ones(2, 4).long())
    for shape in ((1, 4), (3, 4), (2, 5), (2, 3), (2, 1)):
        message = rf"gave a tensor of shape \({shape[0]}, {shape[1]}, 128\), not \(2, 4, 128\) .*for one batch only"
        with pytest.raises(ns.NeuronShareError, match=message):
            bloom.run_with_hooks(torch.ones(shape).long(), fwd_hooks=hooks)
    bloom.run_with_hooks(torch.ones(2, 4).long(), fwd_hooks=hooks)
    with pytest.raises(ns.NeuronShareError, match=r"of shape \(2, 3, 128\), not \(2, 4, 128\)"):
        bloom.run_with_hooks(torch.ones(2, 3).long(), fwd_hooks=hooks)


@pytest.mark.usefixtures("as_users_run_it")
def test_results_before_everything_is_recorded(bloom):
    recorder = ns.SharingRecorder(bloom, ["en", "de"], 2)
    with pytest.raises(ns.NeuronShareError, match=r"'en', example 0: .* did not fire, so that 4 of 4 prompts are not"):
        recorder.sharing()
    tokens = torch.ones(2, 4).long()
    bloom.run_with_hooks(tokens, fwd_hooks=recorder.fwd_hooks("en", [0, 1], tokens=tokens))
    with pytest.raises(ns.NeuronShareError, match=r"'de', example 0: .* did not fire, so that 2 of 4 prompts are not"):
        recorder.sharing()
    bloom.run_with_hooks(tokens, fwd_hooks=recorder.fwd_hooks("de", [0, 1], tokens=tokens))
    assert len(recorder.sharing()) == 2
    with pytest.raises(ns.NeuronShareError, match="The prompts are 1 examples in en, de; 2 in en, de were recorded"):
        recorder.sharing(prompts=ns.ParallelPrompts({"en": ["a"], "de": ["b"]}))
    with pytest.raises(ns.NeuronShareError, match="prompts is a dict; give the ParallelPrompts that were run"):
        recorder.sharing(prompts={"en": ["a"], "de": ["b"]})


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("row", [0, 2, 3])
def test_of_a_batch_the_example_is_named_that_is_no_number(bloom, row):
    recorder = ns.SharingRecorder(bloom, ["en", "de"], 4)
    tokens = models.tokenise(bloom, ["The sky"])[0]
    batch = torch.tensor([tokens] * 4)

    def spoil(tensor, hook):
        changed = tensor.clone()
        changed[row, -1, 3] = torch.nan
        return changed

    hooks = [(recorder.layers[1].name, spoil), *recorder.fwd_hooks("de", range(4), torch.ones_like(batch))]
    with pytest.raises(ns.NeuronShareError, match=f"Language 'de', example {row}: NaN or infinite activations"):
        bloom.run_with_hooks(batch, fwd_hooks=hooks)
