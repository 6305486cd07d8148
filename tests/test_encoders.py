"""Encoders and encoder-decoders against Hugging Face's modules, one unpadded prompt at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tl_neuronshare as ns
from support import encoders, zoo
from support.encoders import BOTH, ENCODERS, KINDS, Reference
from tl_neuronshare import models
from tl_neuronshare.models import decoding, inputs_of
from tl_neuronshare.models.lens import has_hooked_transformer

PROMPTS = ns.ParallelPrompts({language: texts[:4] for language, texts in zoo.TEXTS.items()})
ANSWERS = [" Rom", "zwei", "Oslo ist", "Bern"]
QUIZ = ns.ParallelPrompts(
    PROMPTS.select(["en", "de", "zh"]).prompts,
    dict.fromkeys(("en", "de", "zh"), ANSWERS),
    {language: [ANSWERS] * 4 for language in ("en", "de", "zh")},
)
# TransformerLens 3.9 does not boot RoBERTa, and its T5 does not run with today's Transformers.
NOT_IN_3 = {"roberta", "t5", "mt5"} if has_hooked_transformer() else set()


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Any:
    """A bridge and its reference, each made once."""
    made: dict[str, tuple[Any, Reference]] = {}

    def of(name: str) -> tuple[Any, Reference]:
        if name in NOT_IN_3:
            pytest.skip(f"TransformerLens 3 cannot run {name}")
        if name not in made:
            directory = encoders.save(name, tmp_path_factory.mktemp(name))
            made[name] = ns.load_model(directory, backend="bridge", device="cpu"), Reference(name, directory)
        return made[name]

    return of


def sites(name: str) -> list[str]:
    return ["post", "gate", "up"] if KINDS[name].up else ["post"]


@pytest.mark.parametrize("name", KINDS)
def test_types_are_those_of_each_prompt_alone(pair, name):
    model, reference = pair(name)
    for site in sites(name):
        for position in ("any", "all", -1, -2) if name in ENCODERS else ("last", "any", "all"):
            sharing = ns.categorise(model, PROMPTS, site=site, position=position)
            for language, texts in PROMPTS.prompts.items():
                ours = sharing.activated(language=language)[:, 0]
                for example, text in enumerate(texts):
                    expected = torch.stack(reference.active(text, site, position))
                    assert ours[example].equal(expected), (site, position, language, example)


@pytest.mark.parametrize("name", KINDS)
def test_layers_are_named_and_ordered_encoder_first(pair, name):
    model, reference = pair(name)
    layers = models.neuron_layers(model, "post")
    assert [layer.stack for layer in layers] == reference.stacks
    if name in BOTH:
        hooks = ns.categorise(model, PROMPTS).hooks
        assert [hook.split("_")[0] for hook in hooks] == reference.stacks
        assert ns.categorise(model, PROMPTS).metadata["decoder_prompt"] == KINDS[name].decoder_prompt


@pytest.mark.parametrize("name", KINDS)
def test_ablated_logits_are_those_of_the_model(pair, name):
    """Two texts of different lengths in one batch, padded on the right."""
    model, reference = pair(name)
    layers = models.neuron_layers(model, "post")
    mask = torch.rand(len(layers), layers[0].width, generator=torch.Generator().manual_seed(0)) < 0.3
    texts, answers = PROMPTS.prompts["de"][:2], ((50, 60), (70, 80))
    rows = models.tokenise(model, texts)
    inputs = models.inputs_of(model, rows, answers if name in BOTH else None)
    with torch.no_grad(), model.hooks(fwd_hooks=ns.ablation_hooks(model, mask)):
        ours = models.last_logits(model, inputs, inputs.tokens.shape[1])
    for row, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        expected = reference.run(text, answer=answer, zeroed=mask).logits
        torch.testing.assert_close(ours[row, : len(expected)], expected, atol=1e-4 * expected.abs().max(), rtol=0)
        assert (expected - reference.run(text, answer=answer).logits).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize("name", KINDS)
def test_every_check_passes(pair, name):
    table = ns.verify(pair(name)[0]).set_index("check")
    assert table["passed"].all()
    assert ("decoding" in table.index) == (name in BOTH)
    assert not {"cache", "generate", "unembedding"} & set(table.index)


@pytest.mark.parametrize("name", BOTH)
def test_answers_follow_the_decoder_prompt(pair, name):
    model, reference = pair(name)

    def tokens(text):
        return reference.tokenizer(text.strip(), add_special_tokens=False).input_ids

    n_new = max(len(tokens(answer)) for answer in ANSWERS) + 1
    chosen, exact = (ns.evaluate(model, QUIZ, scoring=scoring) for scoring in ("choice", "exact"))
    for choice, decoded in zip(chosen.itertuples(), exact.itertuples(), strict=True):
        text = QUIZ.prompts[choice.language][choice.example]
        log_probs = [reference.log_prob(text, tokens(answer)) for answer in ANSWERS]
        assert choice.prediction == ANSWERS[log_probs.index(max(log_probs))]
        assert choice.log_prob == pytest.approx(log_probs[choice.example], rel=1e-5)
        assert decoded.log_prob == pytest.approx(log_probs[choice.example], rel=1e-5)
        assert decoded.prediction == reference.tokenizer.decode(reference.greedy(text, n_new)).split("\n")[0]


@pytest.mark.parametrize("name", ["mbart", "t5"])
def test_a_study_ablates_encoder_and_decoder(pair, name):
    model, reference = pair(name)
    sharing = ns.categorise(model, QUIZ)
    runs = {}
    table = ns.ablation_study(
        model,
        QUIZ,
        sharing,
        types=["all-shared"],
        seeds=[0],
        on_run=lambda type, ablated, seed, table: runs.update({ablated: table}),
    )
    assert set(table["ablated"]) == {"none", "type", "random", "random-active", "magnitude", "other-example"}
    mask = sharing.mask("all-shared")
    for row in runs["type"].itertuples():
        answer = reference.tokenizer(ANSWERS[row.example].strip(), add_special_tokens=False).input_ids
        text = QUIZ.prompts[row.language][row.example]
        assert row.log_prob == pytest.approx(reference.log_prob(text, answer, mask[row.example]), rel=1e-5)
    for mode in ("mean", "resample"):
        assert len(ns.ablation_study(model, QUIZ, sharing, types=["specific"], controls=[], seeds=[0], mode=mode))


@pytest.mark.parametrize("name", ["mbart", "t5", "bert"])
def test_reference_values_are_means_of_the_model_s_values(pair, name):
    model, reference = pair(name)
    texts = PROMPTS.prompts["ru"]
    for position in (-1, "all"):
        ours = ns.reference_values(model, {"ru": texts}, position=position)["ru"]
        expected = []
        for text in texts:
            run = reference.run(text)
            plain = [place for place, token in enumerate(run.ids) if token not in reference.tokenizer.all_special_ids]
            expected.append(
                torch.stack(
                    [
                        values[-1] if position == -1 else values[plain if stack == "encoder" else ...].mean(0)
                        for stack, values in zip(reference.stacks, run.values, strict=True)
                    ]
                )
            )
        torch.testing.assert_close(ours, torch.stack(expected).mean(0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["mbart", "t5", "bert"])
def test_rates_are_of_the_layers_that_see_the_text(pair, name):
    model, reference = pair(name)
    texts = PROMPTS.prompts["de"]
    rates = ns.activation_rates(model, {"de": texts, "ru": PROMPTS.prompts["ru"]}).rates
    for layer, stack in enumerate(reference.stacks):
        if stack == "decoder":
            assert rates[0, layer].isnan().all()
            continue
        above = []
        for text in texts:
            run = reference.run(text)
            plain = [place for place, token in enumerate(run.ids) if token not in reference.tokenizer.all_special_ids]
            above.append(run.values[layer][plain] > 0)
        torch.testing.assert_close(rates[0, layer], torch.cat(above).double().mean(0))


def test_a_long_text_is_read_in_pieces_that_keep_their_special_tokens(pair, monkeypatch):
    model, reference = pair("bert")
    monkeypatch.setattr(model.cfg, "n_ctx", 12)
    texts = [text for texts in zoo.TEXTS.values() for text in texts]
    seen = []

    def noting(model, rows, answers=None):
        seen.extend(rows)
        return inputs_of(model, rows, answers)

    monkeypatch.setattr(models, "inputs_of", noting)
    ns.activation_rates(model, {"en": texts})
    assert max(map(len, seen)) == 12
    assert all(row[0] == encoders.START and row[-1] == encoders.END for row in seen)
    inner = [token for row in seen for token in row[1:-1]]
    assert sorted(inner) == sorted(token for text in texts for token in reference.tokenizer(text).input_ids[1:-1])


def test_a_text_may_be_as_long_as_the_context(pair):
    """RoBERTa numbers positions from the padding's number on."""
    model, _ = pair("roberta")
    room = model.cfg.n_ctx
    assert room == KINDS["roberta"].config["max_position_embeddings"] - 2
    longest = " ".join(["1"] * room)
    n_tokens = len(models.tokenise(model, [longest])[0])
    texts = [longest[: -(n_tokens - room)] if n_tokens > room else longest] * 2
    ns.categorise(model, ns.ParallelPrompts({"en": texts[:1], "de": texts[:1]}), position="any")
    with pytest.raises(ns.NeuronShareError, match=f"tokens, but the model's context is {room}"):
        ns.categorise(model, ns.ParallelPrompts({"en": [longest * 2], "de": texts[:1]}), position="any")


def test_an_encoder_has_no_last_position_and_no_answers(pair):
    model, _ = pair("bert")
    for run in (lambda: ns.categorise(model, PROMPTS), lambda: ns.reference_values(model, PROMPTS)):
        with pytest.raises(ns.NeuronShareError, match="is an encoder, in which no token predicts the answer"):
            run()
    with pytest.raises(ns.NeuronShareError, match="is an encoder. It gives no answer to a prompt"):
        ns.evaluate(model, QUIZ)
    with pytest.raises(ns.NeuronShareError, match="is an encoder. It does not predict each token"):
        ns.perplexity(model, PROMPTS.prompts)
    sharing = ns.categorise(model, QUIZ, position="any")
    with pytest.raises(ns.NeuronShareError, match="is an encoder. The scores are of what MLPs write"):
        ns.attribute(model, QUIZ, sharing)
    with pytest.raises(ns.NeuronShareError, match="whose tokenizer adds its own special tokens"):
        ns.categorise(model, PROMPTS, position="any", prepend_bos=True)
    mask = torch.ones(3, 96, dtype=torch.bool)
    with pytest.raises(ns.NeuronShareError, match=r"padded on the right, .* booleans \[batch, position\]"):
        ns.ablation_hooks(model, mask, position=-1)
    assert ns.ablation_hooks(model, mask, position=torch.ones(1, 4, dtype=torch.bool))


def test_the_mask_token_is_a_position_of_encoders(pair):
    model, reference = pair("bert")
    masked = {language: [f"{text} <mask>." for text in texts] for language, texts in PROMPTS.prompts.items()}
    sharing = ns.categorise(model, ns.ParallelPrompts(masked), position="mask")
    for language, texts in masked.items():
        for example, text in enumerate(texts):
            run = reference.run(text)
            place = run.ids.index(reference.tokenizer.mask_token_id)
            expected = torch.stack([values[place] > 0 for values in run.values])
            assert sharing.activated(language=language)[example, 0].equal(expected)
    with pytest.raises(ns.NeuronShareError, match="Language 'en', example .*: the prompt has 0 mask tokens"):
        ns.categorise(model, PROMPTS, position="mask")
    recorder = ns.SharingRecorder(model, ["en", "de"], 1, position="mask")
    with pytest.raises(ns.NeuronShareError, match="position='mask' without tokens cannot be found"):
        recorder.fwd_hooks("en", [0], torch.ones(1, 4, dtype=torch.long))
    with pytest.raises(ns.NeuronShareError, match="fills in no mask token"):
        ns.categorise(pair("mbart")[0], PROMPTS, position="mask")


def test_what_an_encoder_decoder_cannot_do_is_refused(pair):
    model, _ = pair("mbart")
    sharing = ns.categorise(model, QUIZ)
    with pytest.raises(ns.NeuronShareError, match="is an encoder-decoder. It does not predict each token"):
        ns.perplexity(model, PROMPTS.prompts)
    with pytest.raises(ns.NeuronShareError, match="decoder of an encoder-decoder is not scored"):
        ns.attribute(model, QUIZ, sharing)
    with pytest.raises(ns.NeuronShareError, match="whose encoder and decoder see different tokens; categorise reads"):
        ns.SharingRecorder(model, ["en", "de"], 1).fwd_hooks("en", [0])
    with pytest.raises(ns.NeuronShareError, match="the decoder's prompt has 2 token"):
        ns.categorise(model, PROMPTS, position=-3)
    with pytest.raises(ns.NeuronShareError, match="its decoder prompt has fewer than 3 tokens"):
        ns.reference_values(model, PROMPTS, position=-3)
    with pytest.raises(ns.NeuronShareError, match="see different tokens, so that positions are of one of them only"):
        ns.ablation_study(model, QUIZ, sharing, position="last")
    with pytest.raises(ns.NeuronShareError, match="the mask has|The mask has shape"):
        ns.ablation_hooks(model, torch.ones(2, 96, dtype=torch.bool))


def test_types_of_another_target_language_are_refused(pair):
    model, _ = pair("mbart")
    sharing = ns.categorise(model, QUIZ)
    settings = model.original_model.generation_config
    settings.forced_bos_token_id = 30
    try:
        with pytest.raises(ns.NeuronShareError, match=r"begins with tokens \[2, 5\], and now with \[2, 30\]"):
            ns.ablation_study(model, QUIZ, sharing)
    finally:
        settings.forced_bos_token_id = encoders.GERMAN


@pytest.mark.parametrize("name", ["mbart", "bert"])
def test_the_fingerprint_sees_every_weight(pair, name):
    model, _ = pair(name)
    before = models.fingerprint.fingerprint_of_weights(model)
    with models.unwrapped(model) as hugging_face:
        weights = [parameter for parameter in hugging_face.parameters() if parameter.ndim]
    for parameter in weights[:: len(weights) // 6]:
        kept = parameter.flatten()[3].item()
        with torch.no_grad():
            parameter.view(-1)[3] += 1
        assert models.fingerprint.fingerprint_of_weights(model) != before
        with torch.no_grad():
            parameter.view(-1)[3] = kept
    assert models.fingerprint.fingerprint_of_weights(model) == before


def test_recorder_and_caches_of_an_encoder(pair):
    model, _ = pair("bert")
    some = PROMPTS.select(["en", "de"])
    expected = ns.categorise(model, some, position="any")
    recorder = ns.SharingRecorder(model, some.languages, len(some), position="any")
    caches, lengths, tokens = {}, {}, {}
    for language, texts in some.prompts.items():
        inputs = models.inputs_of(model, models.tokenise(model, texts))
        hooks = recorder.fwd_hooks(language, range(len(texts)), inputs.mask, tokens=inputs.tokens)
        model.run_with_hooks(inputs.tokens, attention_mask=inputs.mask, fwd_hooks=hooks)
        _, caches[language] = model.run_with_cache(inputs.tokens, attention_mask=inputs.mask)
        lengths[language], tokens[language] = inputs.mask.sum(1), inputs.tokens
    cached = ns.categorise_caches(caches, lengths=lengths, tokens=tokens, position="any")
    assert recorder.sharing().types.equal(expected.types)
    assert cached.types.equal(expected.types)


def test_decoding_is_that_of_a_loop_over_hugging_face(pair):
    model, reference = pair("mbart")
    rows = models.tokenise(model, PROMPTS.prompts["de"])
    new = decoding.greedy(model, rows, 4, cached=False)
    for row, text in zip(new, PROMPTS.prompts["de"], strict=True):
        greedy = reference.greedy(text, 4)
        assert row[: len(greedy)] == greedy


def test_a_folder_of_a_different_target_language_is_refused(pair, tmp_path):
    """What the decoder begins with decides the answers."""
    model, _ = pair("mbart")
    widths = ns.categorise(model, QUIZ).widths
    mask = torch.zeros(len(widths), max(widths), dtype=torch.bool)
    mask[0, :3] = True

    def evaluated():
        ns.evaluate(model, QUIZ, out=tmp_path / "evaluated", progress=False)

    def studied():
        ns.ablation_study(model, QUIZ, {"some": mask}, controls=[], out=tmp_path / "studied", progress=False)

    evaluated()
    studied()
    settings = model.original_model.generation_config
    settings.forced_bos_token_id = 30
    try:
        for run in (evaluated, studied):
            with pytest.raises(ns.NeuronShareError, match="belongs to a different call: its decoder_prompt"):
                run()
    finally:
        settings.forced_bos_token_id = encoders.GERMAN
