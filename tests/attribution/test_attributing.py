"""Scores: against loops over single neurons through Hugging Face, against ablations, and against TransformerLens."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import reference
import tl_neuronshare as ns
import zoo
from test_evaluation import PROMPTS, QUIZ, literal_start
from test_memory import PeakMemory
from test_toy import LAST, SETS, toy_directory  # noqa: F401
from tl_neuronshare import models
from tl_neuronshare.attribution import impacts as impacts_module
from tl_neuronshare.models import layers, lens

TYPES = [type.label for type in ns.NeuronType][::-1]
SHARES = ("mean_positive_share", "pooled_positive_share", "mean_absolute_share", "pooled_absolute_share")
STATISTICS = {
    "generation": ("top_share", "mean", "sum", "max", "min"),
    "correctness": ("mean", "sum", "max", "min", *SHARES),
}
KEYS = ["language", "layer", "type", "score", "statistic"]
LITERAL = ["bloom", "gpt2", "llama", "demo"]


def quiz_for(name):
    return ns.demo.prompts()[:4].select(["en", "ru", "zh"]) if name == "demo" else QUIZ


def kind_of(name):
    return zoo.KINDS["bloom"] if name == "demo" else zoo.KINDS[name]


def layers_of(name):
    return 4 if name == "demo" else zoo.KINDS[name].n_layers


def gradient(hugging_face, name):
    """In E's place the gradient of (what the final norm gives) . E, by Hugging Face's own module."""
    module = hugging_face.get_submodule(kind_of(name).norm)

    def direction(unembedding, residual):
        residual = residual.detach().clone().requires_grad_()
        return torch.autograd.grad(module(residual) @ unembedding, residual)[0]

    return direction


def literal_scores(animals, name, prompts, answer="first", norm="none"):
    """(example, language, layer) -> each neuron's two scores, means over the answer's tokens."""
    hugging_face, tokenizer = animals.hugging_face(name)
    kind, options = kind_of(name), {}
    if norm == "full":
        options = {"direction": gradient(hugging_face, name), "norm": kind.norm}
    found = {}
    for language, example in product(prompts.languages, range(len(prompts))):
        text, gold = prompts.prompts[language][example], prompts.answers[language][example]
        start, (tokens,), _ = literal_start(tokenizer, text, [gold], kind.bos)
        places = range(start, len(tokens) if answer == "all" else start + 1)
        of_tokens = [
            reference.scores(
                hugging_face, tokens[:place], -1, tokens[place], down=kind.down, n_layers=layers_of(name), **options
            )
            for place in places
        ]
        for layer in range(layers_of(name)):
            wrote, pushed = (np.mean([of_one[layer][which] for of_one in of_tokens], axis=0) for which in (0, 1))
            found[example, language, layer] = wrote.tolist(), pushed.tolist()
    return found


def literal_table(animals, name, prompts, scores):
    """Every statistic, with sets and loops."""
    hugging_face, tokenizer = animals.hugging_face(name)
    n_layers, kind = layers_of(name), kind_of(name)
    active = reference.active_neurons(
        hugging_face, tokenizer, prompts.prompts, module=kind.down, n_layers=n_layers, bos=kind.bos
    )
    languages = list(prompts.languages)
    of_type, top = {}, {}
    for example, layer in product(range(len(prompts)), range(n_layers)):
        width = len(scores[example, languages[0], layer][0])
        of_type[example, layer] = reference.types(active, example, layer, languages, width)
        for language in languages:
            wrote = scores[example, language, layer][0]
            order = sorted(range(width), key=lambda neuron: (-wrote[neuron], neuron))
            top[example, language, layer] = set(order[: int(800 / 16384 * width + 0.5)])
    table = {}
    for language, layer, type in product(["all", *languages], [*range(n_layers), "all"], TYPES):
        pairs = product(range(len(prompts)), languages if language == "all" else [language])
        layers = range(n_layers) if layer == "all" else [layer]
        rows, shares = [], []
        for example, spoken in pairs:
            wrote = [scores[example, spoken, i][0][j] for i in layers for j in of_type[example, i][type]]
            pushed = [scores[example, spoken, i][1][j] for i in layers for j in of_type[example, i][type]]
            pushed_by_all = [push for i in layers for push in scores[example, spoken, i][1]]
            best = sum(len(top[example, spoken, i]) for i in layers)
            rows.append((wrote, pushed))
            shares.append(
                (
                    sum(len(top[example, spoken, i] & of_type[example, i][type]) for i in layers) / best,
                    (sum(max(p, 0) for p in pushed), sum(max(p, 0) for p in pushed_by_all)),
                    (sum(abs(p) for p in pushed), sum(abs(p) for p in pushed_by_all)),
                )
            )
        key = (language, layer, type)
        table[(*key, "generation", "top_share")] = 100 * np.mean([share for share, _, _ in shares])
        for which, score in enumerate(("generation", "correctness")):
            some = [row[which] for row in rows if row[which]]
            for statistic, function in {"mean": np.mean, "max": max, "min": min}.items():
                table[(*key, score, statistic)] = np.mean([function(row) for row in some]) if some else np.nan
            table[(*key, score, "sum")] = np.mean([sum(row[which]) for row in rows])
        for place, sign in ((1, "positive"), (2, "absolute")):
            parts = [share[place] for share in shares]
            table[(*key, "correctness", f"mean_{sign}_share")] = 100 * np.mean([part / whole for part, whole in parts])
            pooled = sum(part for part, _ in parts) / sum(whole for _, whole in parts)
            table[(*key, "correctness", f"pooled_{sign}_share")] = 100 * pooled
    return table


def scores_of(model, prompts, sharing, **options):
    """(example, language, layer) -> both scores, as the library has them."""
    given = {"top_k": 1, "answer": "first", "norm": "none", "batch_size": "auto", "prepend_bos": None} | options
    impacts = impacts_module.Impacts(model, prompts, sharing, **given)
    return {
        (example, one.language, one.layer): (wrote, pushed)
        for one in impacts.each(desc="", progress=False)
        for example, wrote, pushed in zip(one.examples, one.generation, one.correctness, strict=True)
    }


@pytest.mark.parametrize(("answer", "norm"), [("first", "none"), ("all", "full")])
@pytest.mark.parametrize("name", LITERAL)
def test_scores_and_table_equal_a_loop_over_single_neurons(animals, name, backend, answer, norm):
    model, prompts = animals.lens(name, backend), quiz_for(name)
    sharing = ns.categorise(model, prompts)
    expected = literal_scores(animals, name, prompts, answer, norm)
    found = scores_of(model, prompts, sharing, answer=answer, norm=norm)
    assert found.keys() == expected.keys()
    for key, of_one in expected.items():
        for ours, in_a_loop in zip(found[key], of_one, strict=True):
            theirs = torch.tensor(in_a_loop)
            assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max(), key
    table = ns.attribute(model, prompts, sharing, answer=answer, norm=norm).set_index(KEYS)["value"].to_dict()
    in_loops = literal_table(animals, name, prompts, expected)
    assert list(table) == [
        (language, layer, type, score, statistic)
        for language in ("all", *prompts.languages)
        for layer in (*range(layers_of(name)), "all")
        for type in TYPES
        for score, statistics in STATISTICS.items()
        for statistic in statistics
    ]
    largest = {
        score: max(abs(value) for key, value in in_loops.items() if key[3:] == (score, "max")) for score in STATISTICS
    }
    for key, value in in_loops.items():
        # What is about zero, as the sum of what adds up to nothing, is compared on the scale of its parts.
        assert table[key] == pytest.approx(value, rel=1e-4, abs=1e-5 * largest[key[3]], nan_ok=True), key


@pytest.mark.parametrize("answer", ["first", "all"])
def test_a_wrong_answer_is_the_next_that_begins_otherwise(animals, backend, answer):
    """Against attributing prompts whose answers are these; where all begin alike there is none."""
    model, prompts = animals.lens("demo", backend), ns.demo.prompts()[:60].select(["en", "zh"])
    sharing = ns.categorise(model, prompts)
    first = {
        language: [model.tokenizer(answer, add_special_tokens=False).input_ids[0] for answer in answers]
        for language, answers in prompts.answers.items()
    }
    assert any(len(set(tokens)) < 60 for tokens in first.values())
    wrong = {
        language: [
            next(answers[j % 60] for j in range(i + 1, i + 60) if first[language][j % 60] != first[language][i])
            for i in range(60)
        ]
        for language, answers in prompts.answers.items()
    }
    table = ns.attribute(model, prompts, sharing, answer=answer).set_index(KEYS)
    assert table.loc[[key for key in table.index if key[3] == "generation"], "other_answer"].isna().all()
    if answer == "first":
        others = ns.attribute(model, ns.ParallelPrompts(prompts.prompts, wrong), sharing).set_index(KEYS)["value"]
        pushed = [key for key in table.index if key[3] == "correctness"]
        np.testing.assert_allclose(table.loc[pushed, "other_answer"], others[pushed], rtol=1e-4, atol=1e-6)
    alike = ns.ParallelPrompts(prompts.prompts, {"en": [" 7"] * 60, "zh": prompts.answers["zh"]})
    table = ns.attribute(model, alike, sharing, answer=answer)
    table = table.query("score == 'correctness' and layer == 'all' and type == 'all-shared'")
    missing = table.set_index("language")["other_answer"].isna().groupby(level=0).all()
    assert missing.to_dict() == {"all": True, "en": True, "zh": False}


def test_answers_merge_with_prompts_and_are_found(animals, backend):
    """Most do in these texts; and the table says how many."""
    model = animals.lens("bloom", backend)
    table = ns.attribute(model, QUIZ, ns.categorise(model, QUIZ))
    merged = ns.evaluate(model, ns.ParallelPrompts(PROMPTS, QUIZ.answers), scoring="exact")["merged"]
    assert table.attrs["merged"] == merged.mean() > 0.2


@pytest.mark.skipif(not models.has_hooked_transformer(), reason="needs HookedTransformer's normalization_type=None")
def test_without_a_norm_the_score_is_what_the_logit_loses(animals):
    """Causal: one neuron of the last layer zeroed at the last position."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2, d_model=32, n_ctx=64, d_head=8, d_mlp=48, act_fn="gelu", d_vocab=400, device="cpu", seed=1,
        normalization_type=None,
    )  # fmt: skip
    model = HookedTransformer(config, AutoTokenizer.from_pretrained(animals.directory("bloom")))
    sharing = ns.categorise(model, QUIZ)
    for norm in ("none", "frozen", "full"):
        found = scores_of(model, QUIZ, sharing, norm=norm)
        for (example, language), neuron in zip(product(range(3), QUIZ.languages), (0, 7, 13) * 3, strict=True):
            text, gold = QUIZ.prompts[language][example], QUIZ.answers[language][example]
            start, (tokens,), _ = literal_start(model.tokenizer, text, [gold], True)
            before = torch.tensor([tokens[:start]])
            mask = torch.zeros(2, 48, dtype=torch.bool)
            mask[1, neuron] = True
            hooks = ns.ablation_hooks(model, mask, position="last")
            logits = [model(before), model.run_with_hooks(before, fwd_hooks=hooks)]
            lost = (logits[0] - logits[1])[0, -1, tokens[start]]
            assert abs(found[example, language, 1][1][neuron] - lost) <= 1e-4


def literal_norm(name, residual, scale_of, module):
    """The final norm by its formula, at the scale of another residual stream."""
    centre = (lambda x: x) if name in ("llama", "qwen2") else (lambda x: x - x.mean())
    eps = 1e-6 if name in ("llama", "qwen2") else 1e-5
    scale = (centre(scale_of).square().mean() + eps).sqrt()
    return centre(residual) / scale * module.weight + getattr(module, "bias", 0.0)


@pytest.mark.parametrize("name", ["bloom", "gpt2", "llama", "opt", "qwen2"])
def test_at_a_frozen_scale_the_score_is_what_the_logit_loses(animals, name, backend):
    """Causal, with the norm's weight: Hugging Face's model with one neuron zeroed, its last norm computed by hand."""
    model, kind = animals.lens(name, backend), zoo.KINDS[name]
    hugging_face, tokenizer = animals.hugging_face(name)
    found = scores_of(model, QUIZ, ns.categorise(model, QUIZ), norm="frozen")
    module = hugging_face.get_submodule(kind.norm)
    last, residual = kind.n_layers - 1, []
    module.register_forward_pre_hook(lambda _, inputs: residual.append(inputs[0].reshape(-1, 32)[-1]))
    for (example, language), neuron in zip(product(range(3), QUIZ.languages), (0, 7, 13) * 3, strict=True):
        text, gold = QUIZ.prompts[language][example], QUIZ.answers[language][example]
        start, (tokens,), _ = literal_start(tokenizer, text, [gold], kind.bos)

        def without(values, neuron=neuron):
            flat = values.reshape(-1, values.shape[-1]).clone()
            flat[-1, neuron] = 0
            return flat.reshape(values.shape)

        with torch.no_grad():
            hugging_face(torch.tensor([tokens[:start]]))
            with reference.edited(hugging_face, module=kind.down, edits={last: without}):
                hugging_face(torch.tensor([tokens[:start]]))
        before, after = residual[-2:]
        torch.testing.assert_close(literal_norm(name, before, before, module), module(before), rtol=1e-5, atol=1e-5)
        logits = [
            literal_norm(name, one, before, module) @ hugging_face.get_output_embeddings().weight[tokens[start]]
            for one in (before, after)
        ]
        assert abs(found[example, language, last][1][neuron] - (logits[0] - logits[1])) <= 1e-4


@pytest.mark.skipif(not models.has_hooked_transformer(), reason="only HookedTransformer divides by its hook_scale")
@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_at_a_scale_that_a_hook_freezes_too(animals, name):
    model, neuron = animals.lens(name, "hooked"), 5
    found = scores_of(model, QUIZ, ns.categorise(model, QUIZ), norm="frozen")
    start, (tokens,), _ = literal_start(model.tokenizer, PROMPTS["en"][1], [QUIZ.answers["en"][1]], zoo.KINDS[name].bos)
    before = torch.tensor([tokens[:start]])
    logits, cache = model.run_with_cache(before)
    mask = torch.zeros(3, model.cfg.d_mlp, dtype=torch.bool)
    mask[2, neuron] = True
    frozen = [("ln_final.hook_scale", lambda scale, hook: cache["ln_final.hook_scale"])]
    ablated = model.run_with_hooks(before, fwd_hooks=frozen + ns.ablation_hooks(model, mask, position="last"))
    lost = (logits - ablated)[0, -1, tokens[start]]
    assert abs(found[1, "en", 2][1][neuron] - lost) <= 1e-4


@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_without_the_norms_weight_it_is_what_transformer_lens_has(animals, name, backend, tmp_path):
    """`stack_neuron_results` and `apply_ln`, which leaves out the weight."""
    hugging_face, tokenizer = animals.hugging_face(name)
    module = hugging_face.get_submodule(zoo.KINDS[name].norm)
    with torch.no_grad():
        module.weight.fill_(1.0)
    hugging_face.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = (
        zoo.hooked_by_hand(zoo.KINDS[name].hooked, tmp_path)
        if backend == "hooked" and name == "llama"
        else ns.load_model(tmp_path, backend=backend, device="cpu")
    )
    found = scores_of(model, QUIZ, ns.categorise(model, QUIZ), norm="frozen")
    for example, language in product(range(3), QUIZ.languages):
        text, gold = QUIZ.prompts[language][example], QUIZ.answers[language][example]
        start, (tokens,), _ = literal_start(tokenizer, text, [gold], zoo.KINDS[name].bos)
        _, cache = model.run_with_cache(torch.tensor([tokens[:start]]))
        stack = cache.stack_neuron_results(layer=-1, pos_slice=-1, apply_ln=True)
        theirs = (stack @ model.unembed.W_U[:, tokens[start]]).reshape(3, -1)
        for layer in range(3):
            torch.testing.assert_close(found[example, language, layer][1], theirs[layer], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_shares_add_up_to_all(animals, name, backend):
    model = animals.lens(name, backend)
    for top_k in (1, 7, 0.2, 1.0):
        table = ns.attribute(model, QUIZ, ns.categorise(model, QUIZ), top_k=top_k)
        sums = table[table["statistic"].str.endswith("share")].groupby(KEYS[:2] + KEYS[3:])["value"].sum()
        assert len(sums) == 4 * 4 * 5
        np.testing.assert_allclose(sums, 100)
        if isinstance(top_k, float) and top_k == 1:  # all neurons are the top
            rows = table[table["statistic"] == "top_share"]
            np.testing.assert_allclose(rows["value"], rows["chance"])


@pytest.fixture
def toy(toy_directory, tmp_path, backend):  # noqa: F811
    """Neurons of known types: each writes 1 to every coordinate, and so either 4 times the root of 8, or nothing."""
    model = AutoModelForCausalLM.from_pretrained(toy_directory)
    with torch.no_grad():
        for layer in model.model.decoder.layers:
            layer.fc2.weight.fill_(1.0)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(toy_directory).save_pretrained(tmp_path)
    model = ns.load_model(tmp_path, backend=backend, device="cpu")
    prompts = ns.ParallelPrompts(
        {la: [f"sky {word}" for word in words] for la, words in LAST.items()},
        {la: [" sun"] * len(words) for la, words in LAST.items()},
    )
    return model, prompts, ns.categorise(model, prompts)


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_of_equal_neurons_the_first_are_the_top(toy, batch_size):
    """There are two values only, so that nearly all is ties: among the active ones, or among the others."""
    model, prompts, sharing = toy
    exactly = [(hook, lambda values, hook: values.round()) for hook in sharing.hooks]  # LayerNorm's eps is in them
    for top_k in (3, 10, 12):
        with model.hooks(fwd_hooks=exactly):
            table = ns.attribute(model, prompts, sharing, top_k=top_k, batch_size=batch_size)
        table = table.set_index(KEYS)["value"]
        for language, layer, type in product(LAST, range(2), TYPES):
            shares = []
            for example in range(4):
                sets = (SETS, SETS[::-1])[layer]
                active = [number for number, words in enumerate(sets) if LAST[language][example] in words]
                best = (active + [number for number in range(len(sets)) if number not in active])[:top_k]
                shares.append(100 * sharing.mask(type)[example, layer, best].sum().item() / top_k)
            assert table[language, layer, type, "generation", "top_share"] == pytest.approx(np.mean(shares))
        assert table["en", 0, "all-shared", "generation", "max"] == pytest.approx(4 * 8**0.5)


def test_a_type_that_is_empty_has_a_share_of_nothing_and_no_mean(toy):
    """The second example is the same word in all languages: neurons are all-shared or non-activated."""
    model, prompts, sharing = toy
    table = ns.attribute(model, prompts[1:2], sharing[1:2])
    rows = table[(table["type"] == "specific") & (table["layer"] == 0)].set_index(["language", "score", "statistic"])
    for language in ("all", *LAST):
        values = rows.loc[language]["value"]
        assert values["generation"][["top_share", "sum"]].tolist() == [0, 0]
        assert values["generation"][["mean", "max", "min"]].isna().all()
        assert values["correctness"][["mean", "max", "min"]].isna().all()
    assert (rows.query("statistic == 'mean'")["examples"] == 0).all()
    # Among all four examples it is the mean over those that have any, and as a share the mean over all.
    table = ns.attribute(model, prompts, sharing).set_index(KEYS)
    has = sharing.mask("specific")[:, 0].any(-1)
    assert table.loc[("en", 0, "specific", "generation", "mean"), "examples"] == has.sum() < 4
    assert table.loc[("en", 0, "specific", "generation", "top_share"), "examples"] == 4


def test_where_nothing_is_pushed_there_is_no_share(toy):
    """What the toy writes is orthogonal to every word's column."""
    model, prompts, sharing = toy
    table = ns.attribute(model, prompts, sharing)
    shares = table[(table["score"] == "correctness") & table["statistic"].isin(SHARES)]
    assert shares["value"].isna().all()
    assert (shares["examples"] == 0).all()


def test_intervals_and_chance(animals, backend):
    """Against resampling of the single examples' values, for a mean and a ratio."""
    model, prompts = animals.lens("demo", backend), ns.demo.prompts()[:14].select(["en", "zh"])
    sharing = ns.categorise(model, prompts)
    table = ns.attribute(model, prompts, sharing).set_index(KEYS)
    of_one = [ns.attribute(model, prompts[i : i + 1], sharing[i : i + 1]).set_index(KEYS)["value"] for i in range(14)]
    drawn = np.random.default_rng(7).integers(14, size=(20_000, 14))
    for language in ("all", "en"):
        key = (language, 2, "all-shared")
        shares = np.array([values[(*key, "generation", "top_share")] for values in of_one])
        row = table.loc[(*key, "generation", "top_share")]
        assert row["value"] == pytest.approx(shares.mean())
        assert (row["low"], row["high"]) == pytest.approx(np.quantile(shares[drawn].mean(1), [0.025, 0.975]), abs=0.5)
        pushed = np.array([values[(*key, "correctness", "sum")] for values in of_one])
        row = table.loc[(*key, "correctness", "sum")]
        assert (row["low"], row["high"]) == pytest.approx(
            np.quantile(pushed[drawn].mean(1), [0.025, 0.975]), abs=0.05 * pushed.std()
        )
        assert row[["chance"]].isna().all()
        row = table.loc[(*key, "correctness", "pooled_absolute_share")]
        assert row["low"] < row["value"] < row["high"]
        percent = sharing.summary().query("layer == 2 and type == 'all-shared'")["mean"].item()
        assert row["chance"] == pytest.approx(percent)
    few = ns.attribute(model, prompts[:9], sharing[:9])
    assert few[["low", "high"]].isna().to_numpy().all()


@pytest.mark.parametrize(
    ("name", "answer", "norm"),
    [("bloom", "first", "none"), ("bloom", "all", "frozen"), ("gpt2", "all", "full"), ("demo", "first", "none")],
)
def test_batches_and_other_languages_change_nothing(animals, name, backend, answer, norm):
    model, prompts = animals.lens(name, backend), quiz_for(name)[:2]
    sharing, options = ns.categorise(model, prompts), {"answer": answer, "norm": norm}
    expected = ns.attribute(model, prompts, sharing, **options).set_index(KEYS)["value"]
    found = ns.attribute(model, prompts, sharing, batch_size=1, **options).set_index(KEYS)["value"]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    first, *_, last = prompts.languages
    some = ns.attribute(model, prompts.select([last, first]), sharing, **options).set_index(KEYS)["value"]
    np.testing.assert_allclose(some[first], expected[first], rtol=2e-4, atol=2e-5)


def test_hooks_of_the_users_are_seen_and_the_model_is_left_as_found(bloom):
    sharing = ns.categorise(bloom, QUIZ)
    mask = torch.zeros(3, 128, dtype=torch.bool)
    mask[1] = True
    bloom.train()
    try:
        with bloom.hooks(fwd_hooks=ns.ablation_hooks(bloom, mask)):
            table = ns.attribute(bloom, QUIZ, sharing)
        assert bloom.training
    finally:
        bloom.eval()
    sums = table[table["statistic"] == "sum"].groupby("layer")["value"].apply(lambda values: values.abs().sum())
    assert sums[1] == 0 < sums[0]
    assert not any(hook.fwd_hooks for hook in bloom.hook_dict.values())


def test_between_layers_the_users_own_code_keeps_its_gradients(bloom):
    assert torch.is_grad_enabled()
    impacts = impacts_module.Impacts(bloom, QUIZ, ns.categorise(bloom, QUIZ))
    for one in impacts.each(desc=""):
        assert torch.is_grad_enabled()
        assert not one.correctness.requires_grad


@pytest.mark.parametrize("norm", ["none", "frozen", "full"])
def test_one_forward_pass_a_prompt_no_vocabulary_and_each_token_projected_once(bloom, norm, monkeypatch):
    sharing = ns.categorise(bloom, QUIZ)
    rows, unembedded, directions = [], [], []
    original = impacts_module.projected

    def counted(W_out, direction):  # noqa: N803
        directions.append(len(direction))
        return original(W_out, direction)

    monkeypatch.setattr(impacts_module, "projected", counted)
    hooks = [
        ("blocks.0.mlp.hook_post", lambda tensor, hook: rows.append(len(tensor))),
        ("unembed.hook_in", lambda tensor, hook: unembedded.append(tensor.shape[1])),
    ]
    with bloom.hooks(fwd_hooks=hooks):
        ns.attribute(bloom, QUIZ, sharing, norm=norm, batch_size=1)
    assert sum(rows) == 9
    assert all(n_positions == 1 for n_positions in unembedded)
    if norm != "full":  # whose direction is another for each prompt
        starts = {
            (language, literal_start(bloom.tokenizer, text, [gold], False)[1][0][start])
            for language in QUIZ.languages
            for text, gold in zip(QUIZ.prompts[language], QUIZ.answers[language], strict=True)
            for start in [literal_start(bloom.tokenizer, text, [gold], False)[0]]
        }
        assert sum(directions) == 3 * len(starts)


def test_no_product_of_neurons_and_coordinates_for_each_example(animals, backend):
    """Beside what categorising takes, far less than [prompt, neuron, d_model] is made for a moment."""
    model, prompts = animals.lens("demo", backend), ns.demo.prompts()[:200].select(["en", "de"])
    with PeakMemory() as categorising:
        sharing = ns.categorise(model, prompts, batch_size=50)
    with PeakMemory() as attributing:
        ns.attribute(model, prompts, sharing, norm="full", n_resamples=10, batch_size=50)
    assert attributing.peak < categorising.peak + 50 * 512 * 128 * 4 / 4


def test_in_half_precision(animals, backend):
    model = ns.load_model(animals.directory("bloom"), backend=backend, device="cpu", dtype=torch.bfloat16)
    exact = animals.lens("bloom", backend)
    expected = ns.attribute(exact, QUIZ, ns.categorise(exact, QUIZ), norm="full").set_index(KEYS)["value"]
    found = ns.attribute(model, QUIZ, ns.categorise(model, QUIZ), norm="full").set_index(KEYS)["value"]
    rows = [key for key in expected.index if key[3:] == ("generation", "sum") and key[1:3] == ("all", "all-shared")]
    np.testing.assert_allclose(found[rows], expected[rows], rtol=0.1)


def test_what_it_was_made_from_is_said(bloom, as_users_run_it):
    sharing = ns.categorise(bloom, QUIZ)
    numbers = {"top_k": np.float64(0.1), "batch_size": np.int64(2), "n_resamples": np.int64(9)}
    table = ns.attribute(bloom, QUIZ, sharing, answer="all", norm="frozen", **numbers)
    record = json.loads(json.dumps(table.attrs))
    assert record["sharing"]["fingerprint"] == sharing.metadata["fingerprint"]
    assert record["top_k_of_layers"] == [13, 13, 13]
    reversed_answers = ns.ParallelPrompts(PROMPTS, {la: answers[::-1] for la, answers in QUIZ.answers.items()})
    other = ns.attribute(bloom, reversed_answers, sharing).attrs
    assert other["fingerprint_of_prompts"] == record["fingerprint_of_prompts"]
    assert other["fingerprint_of_answers"] != record["fingerprint_of_answers"]
    said = {"weights": "not folded", "answer": "all", "norm": "frozen", "top_k": 0.1, "examples": 3}
    assert record | said == record


def test_top_neurons_are_counted(animals, backend):
    """Against counting by hand, by both scores."""
    model, prompts = animals.lens("demo", backend), ns.demo.prompts()[:4].select(["en", "ru", "zh"])
    sharing = ns.categorise(model, prompts)
    scores = literal_scores(animals, "demo", prompts)
    for which, score in enumerate(("generation", "correctness")):
        times, total, of_language = {}, {}, {}
        for (example, language, layer), of_one in scores.items():
            ranked = sorted(range(512), key=lambda neuron: -of_one[which][neuron])
            for neuron in range(512):
                total[layer, neuron] = total.get((layer, neuron), 0) + of_one[which][neuron] / 12
            for neuron in ranked[:25]:
                times.setdefault((layer, neuron), []).append(example)
                of_language.setdefault((layer, neuron), []).append(language)
        table = ns.top_neurons(model, prompts, sharing, score=score, n=None)
        assert list(zip(table["layer"], table["neuron"], strict=True)) == sorted(
            times, key=lambda place: (-len(times[place]), -total[place], place)
        )
        for row in table[:40].itertuples(index=False):
            place = row.layer, row.neuron
            assert row.prompts == pytest.approx(100 * len(times[place]) / 12)
            assert row.score == pytest.approx(total[place], rel=1e-4)
            often = [language for language in prompts.languages if of_language[place].count(language) >= 2]
            assert row.languages.split() == often
        for type in TYPES:
            assert table[type].tolist() == sharing.mask(type).sum(0)[table["layer"], table["neuron"]].tolist()
        first = ns.top_neurons(model, prompts, sharing, score=score, n=10)
        assert first.equals(table[:10])
        mask = ns.mask_from_frame(first, n_layers=4, d_mlp=512)
        assert mask.sum() == 10
        assert mask[table["layer"][0], table["neuron"][0]]


def test_neurons_that_write_nothing_are_never_the_top(toy):
    model, prompts, sharing = toy
    table = ns.top_neurons(model, prompts, sharing, n=None, top_k=1.0)
    assert len(table) == 2 * sum(1 for words in SETS if words)
    assert ns.top_neurons(model, prompts, sharing, score="correctness").empty


@pytest.fixture
def ready(animals):
    model = animals.lens("bloom", "bridge")
    return model, QUIZ, ns.categorise(model, QUIZ)


OPTIONS = {
    "top_k too large": ({"top_k": 129}, "top_k=129: layer 0 has 128 neurons only"),
    "no top_k": ({"top_k": 0}, "top_k=0; give a number of neurons"),
    "share above 1": ({"top_k": 1.5}, "top_k=1.5; give a number of neurons"),
    "top_k of another type": ({"top_k": True}, "top_k=True; give a number"),
    "answer": ({"answer": "last"}, "answer='last' is unknown; use one of first, all"),
    "norm": ({"norm": "raw"}, "norm='raw' is unknown; use one of none, frozen, full"),
    "batch_size": ({"batch_size": 0}, "batch_size=0 is unknown"),
    "prepend_bos": ({"prepend_bos": 1}, "prepend_bos=1 is unknown"),
}


@pytest.mark.parametrize("function", [ns.attribute, ns.top_neurons])
@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_unknown_options(ready, function, options, message, as_users_run_it):
    with pytest.raises(ns.NeuronShareError, match=message):
        function(*ready, **options)


def test_other_unknown_options(ready, as_users_run_it):
    with pytest.raises(ns.NeuronShareError, match="n_resamples=0; give a number"):
        ns.attribute(*ready, n_resamples=0)
    with pytest.raises(ns.NeuronShareError, match="score='sum' is unknown; use one of generation, correctness"):
        ns.top_neurons(*ready, score="sum")
    with pytest.raises(ns.NeuronShareError, match="n=0; give a number of neurons, or None"):
        ns.top_neurons(*ready, n=0)


def test_what_cannot_be_attributed(ready, as_users_run_it):
    model, prompts, sharing = ready
    with pytest.raises(ns.NeuronShareError, match="has no answers, in none of en, de, zh"):
        ns.attribute(model, ns.ParallelPrompts(PROMPTS), sharing)
    with pytest.raises(ns.NeuronShareError, match=r"answers is for en, de, but prompts is for en, de, zh"):
        ns.ParallelPrompts(PROMPTS, {la: QUIZ.answers[la] for la in ("en", "de")})
    with pytest.raises(ns.NeuronShareError, match="Language 'de', example 1: the answer is empty"):
        ns.ParallelPrompts(PROMPTS, {**QUIZ.answers, "de": ["a", "", "b"]})
    with pytest.raises(ns.NeuronShareError, match="sharing is a str; give the NeuronSharing"):
        ns.attribute(model, prompts, "all-shared")
    with pytest.raises(ns.NeuronShareError, match="There are 2 examples of prompts and 3 of types"):
        ns.attribute(model, prompts[:2], sharing)
    with pytest.raises(ns.NeuronShareError, match="Example 1: the types are of other prompts"):
        ns.attribute(model, prompts[1:2], sharing[:1])
    with pytest.raises(ns.NeuronShareError, match="measured with prepend_bos=False; give the same"):
        ns.attribute(model, prompts, sharing, prepend_bos=True)
    with pytest.raises(ns.NeuronShareError, match=r"The types are of en, de, and not of zh"):
        ns.attribute(model, prompts, ns.categorise(model, prompts.select(["en", "de"])))


def test_types_of_another_model_are_refused(animals, ready, as_users_run_it):
    model, prompts, sharing = ready
    with pytest.raises(ns.NeuronShareError, match=r"layers of 128, 128, 128 neurons, .* has 96, 96, 96"):
        ns.attribute(animals.lens("llama", "bridge"), prompts, sharing)
    other = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu")
    with torch.no_grad():
        other.blocks[1].mlp.W_out[0, 0] += 1
    with pytest.raises(ns.NeuronShareError, match="measured on other weights than those of"):
        ns.attribute(other, prompts, sharing)
    same = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu")
    assert ns.attribute(same, prompts, sharing).equals(ns.attribute(model, prompts, sharing))


def test_an_answer_that_adds_no_token(animals, ready, as_users_run_it, monkeypatch):
    model, prompts, sharing = ready
    monkeypatch.setattr(models.tokens, "tokenise", lambda model, texts, **_: [[5, 6]] * len(texts))
    monkeypatch.setattr(models, "tokenise", models.tokens.tokenise)
    with pytest.raises(ns.NeuronShareError, match=r"Language 'en', example 0: .* adds no token to the prompt"):
        ns.attribute(model, prompts, sharing)


def test_models_without_the_weights_that_are_needed(animals, ready, as_users_run_it, monkeypatch):
    _, prompts, sharing = ready
    model = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu")
    monkeypatch.delitem(model._modules, "unembed")
    with pytest.raises(ns.NeuronShareError, match="has no unembedding W_U"):
        ns.attribute(model, prompts, sharing)
    monkeypatch.setattr(layers, "nested", lambda owner, name: None)
    monkeypatch.setattr(lens, "nested", lambda owner, name: None)
    with pytest.raises(ns.NeuronShareError, match=r"The MLP of blocks\.0\.mlp\.hook_post has no W_out of one row"):
        ns.attribute(model, prompts, sharing)


def test_an_unembedding_of_another_width(tmp_path, as_users_run_it):
    """OPT-350m maps its residual stream to fewer numbers before the unembedding."""
    config = {**zoo.KINDS["opt"].config, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    model = ns.load_model(zoo.save_model("opt", config, tmp_path), backend="bridge", device="cpu")
    with pytest.raises(ns.NeuronShareError, match="write 32 numbers and its unembedding reads 16"):
        ns.attribute(model, QUIZ, ns.categorise(model, QUIZ))


def test_values_that_are_no_numbers(ready, as_users_run_it):
    model, prompts, sharing = ready

    def break_one(tensor, hook):
        tensor = tensor.clone()
        tensor[1] = float("nan")
        return tensor

    with (
        model.hooks(fwd_hooks=[("blocks.2.mlp.hook_post", break_one)]),
        pytest.raises(ns.NeuronShareError, match=r"Language 'en', example \d, layer 2: a score is NaN or infinite"),
    ):
        ns.attribute(model, prompts, sharing)
    assert not any(hook.fwd_hooks for hook in model.hook_dict.values())


def test_processed_weights_and_norms_after_the_mlp_are_warned_of(animals):
    model = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu")
    model.enable_compatibility_mode(disable_warnings=True)
    sharing = ns.categorise(model, QUIZ)
    with pytest.warns(UserWarning, match="The weights are folded, which changes W_out") as warned:
        table = ns.attribute(model, QUIZ, sharing, batch_size=1)
    assert len(warned) == 1
    assert table.attrs["weights"] == "folded"
    gemma = animals.lens("gemma2", "bridge")
    with pytest.warns(UserWarning, match="normalises what its MLPs write") as warned:
        ns.attribute(gemma, QUIZ, ns.categorise(gemma, QUIZ), batch_size=1)
    assert len(warned) == 1


CHANGED = {
    "gemma2": (zoo.KINDS["gemma2"].config, "normalises what its MLPs write"),
    "olmo2": (zoo._LLAMA, "normalises what its MLPs write"),
    "granite": ({**zoo._LLAMA, "residual_multiplier": 0.2}, "multiplies what its MLPs write"),
    "openai-gpt": ({"vocab_size": 400, "n_embd": 32, "n_layer": 2, "n_head": 4}, "normalises the residual stream"),
    "llama": (zoo._LLAMA, None),
}


@pytest.mark.parametrize(("model_type", "config", "what"), [(k, *v) for k, v in CHANGED.items()], ids=CHANGED)
def test_models_that_change_what_their_mlps_write_are_known(model_type, config, what, tmp_path):
    model = ns.load_model(zoo.save_model(model_type, config, tmp_path), backend="bridge", device="cpu")
    found = models.changes_mlp_output(model)
    assert found is None if what is None else found.startswith(what)


@pytest.mark.parametrize(("name", "changed"), [("gemma2", True), ("bloom", False), ("opt", False)])
def test_and_of_both_classes_alike(animals, name, backend, changed):
    assert (models.changes_mlp_output(animals.lens(name, backend)) is not None) == changed


def test_categorising_needs_no_unembedding(animals, monkeypatch):
    model = ns.load_model(animals.directory("bloom"), backend="bridge", device="cpu")
    expected = ns.categorise(model, QUIZ)
    monkeypatch.delitem(model._modules, "unembed")
    assert ns.categorise(model, QUIZ) == expected


def test_parts_of_the_table_that_figures_lack_are_named(ready, as_users_run_it):
    table = ns.attribute(*ready)
    for plot in (ns.plots.top_shares, ns.plots.impact, ns.plots.correctness):
        with pytest.raises(ns.NeuronShareError, match=r"for specific; give all that attribute made"):
            plot(table[table["type"] != "specific"])
        with pytest.raises(ns.NeuronShareError, match=r"by layer for all-shared"):
            plot(table[table["layer"] == "all"])
    with pytest.raises(ns.NeuronShareError, match=r"of the whole model \(layer 'all'\) for all-shared"):
        ns.plots.correctness(table[table["layer"] != "all"])
    with pytest.raises(ns.NeuronShareError, match=r"language='fr' is not in the table; use one of all, en, de, zh"):
        ns.plots.impact(table, language="fr")
    with pytest.raises(ns.NeuronShareError, match=r"attribute lacks the column\(s\) chance"):
        ns.plots.top_shares(table.drop(columns="chance"))


def test_means_of_few_examples_out_of_many_are_not_drawn(ready):
    table = ns.attribute(*ready)
    table["examples"] = 20
    few = (table["layer"] == 1) & (table["type"] == "specific")
    table.loc[few, "examples"] = 9
    lines = {line.get_label(): line.get_ydata() for line in ns.plots.impact(table).axes[0].lines}
    assert np.isnan(lines["specific"]).tolist() == [False, True, False]
    assert not np.isnan(lines["all-shared"]).any()
