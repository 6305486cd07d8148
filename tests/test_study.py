"""The study: on a toy that needs one known neuron, on the built-in model, and its numbers against plain arithmetic."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, OPTConfig, PreTrainedTokenizerFast

import tl_neuronshare as ns
from test_toy import hadamard
from tl_neuronshare import controls, study

LANGUAGES = ["en", "de", "fr"]
WORDS = {"sun": ("sun", "Sonne", "soleil"), "moon": ("moon", "Mond", "lune")}
RIGHT, WRONG = {"sun": "hot", "moon": "cold"}, {"sun": "cold", "moon": "hot"}
# Each neuron is activated by a set of words. The needed ones write the answer; all others write what nobody reads.
SETS = [
    *({word} for words in WORDS.values() for word in words),  # specific
    *({words[0], words[1]} for words in WORDS.values()),  # partial-shared
    *({words[1], words[2]} for words in WORDS.values()),
    *(set(words) for words in WORDS.values()),  # all-shared: the needed ones
    *({words[0], "never"} for words in WORDS.values()),
    *(set() for _ in range(10)),  # never activated
]
NEEDED = {concept: SETS.index(set(words)) for concept, words in WORDS.items()}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """An OPT of one layer: without the neuron for a concept, in whatever language, its answer is the wrong one."""
    directory = tmp_path_factory.mktemp("planted")
    spoken = [word for words in WORDS.values() for word in words]
    vocabulary = {word: index for index, word in enumerate(("<pad>", *spoken, "hot", "cold"))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {f"{name}_token": "<pad>" for name in ("unk", "pad", "bos", "eos")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    rows = torch.kron(hadamard(), torch.tensor([[1.0, 1.0], [1.0, -1.0]]))[1:]  # 15 rows of 16, orthogonal
    row = dict(zip((*spoken, "hot", "cold", "unread"), rows, strict=False))
    model = AutoModelForCausalLM.from_config(
        OPTConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=len(SETS),
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=16,
            tie_word_embeddings=False,
            **{f"{name}_token_id": 0 for name in ("pad", "bos", "eos")},
        )
    )
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.fill_(1.0 if "layer_norm.weight" in name else 0.0)
        for concept, words in WORDS.items():
            for word in words:  # each word itself leans to the wrong answer
                model.model.decoder.embed_tokens.weight[vocabulary[word]] = row[word] + 0.5 * row[WRONG[concept]]
        for word in ("hot", "cold"):
            model.lm_head.weight[vocabulary[word]] = row[word]
        layer = model.model.decoder.layers[0]
        for neuron, words in enumerate(SETS):
            layer.fc1.weight[neuron] = sum((row[word] for word in words if word in row), torch.zeros(16))
            layer.fc1.bias[neuron] = -8
            written = next((RIGHT[concept] for concept, needed in NEEDED.items() if needed == neuron), "unread")
            layer.fc2.weight[:, neuron] = row[written]
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def concepts():
    """Both concepts in three languages; a prompt has a word of the other before its own, which must not matter."""
    prompts = {la: [f"{WORDS['moon'][i]} {WORDS['sun'][i]}", f"{WORDS['sun'][i]} {WORDS['moon'][i]}"]
               for i, la in enumerate(LANGUAGES)}  # fmt: skip
    answers = {language: [" hot", " cold"] for language in LANGUAGES}
    return ns.ParallelPrompts(
        prompts, answers, {la: [[" hot", " cold"]] * 2 for la in LANGUAGES}, examples=["sun", "moon"]
    )


def of_all(table, metric="accuracy"):
    return table.query("language == 'all' and metric == @metric").set_index(["type", "ablated"])


def test_the_study_finds_exactly_the_one_neuron_that_the_answer_needs(planted, concepts, backend):
    model = ns.load_model(planted, backend=backend, device="cpu")
    sharing = ns.categorise(model, concepts)
    for example, concept in enumerate(WORDS):
        assert sharing.mask("all-shared")[example, 0].nonzero().tolist() == [[NEEDED[concept]]]
    for scoring, seeds in (("choice", range(8)), ("exact", range(4))):
        table = of_all(ns.ablation_study(model, concepts, sharing, seeds=seeds, scoring=scoring))
        assert table.loc[("none", "none"), "value"] == 1
        types = table.xs("type", level="ablated")
        assert types["difference"].to_dict() == {
            "all-shared": -1.0,
            "partial-shared": 0.0,
            "specific": 0.0,
            "non-activated": 0.0,
        }
        assert types.loc["all-shared", "neurons"] == 1
        assert types.loc["all-shared", ["low", "high"]].tolist() == [-1, -1]
        assert table.loc[("all-shared", "random"), "vs_control"] < -0.8  # one of 24 drawn: sometimes the needed one
        assert table.loc[("all-shared", "magnitude"), "vs_control"] == -1
        assert table.loc[("all-shared", "other-example"), "vs_control"] == -1
        # Of the neurons active in a language the needed one is one of three or four.
        assert -1 < table.loc[("all-shared", "random-active"), "vs_control"] < -0.5
    # And neuron by neuron: none but the needed ones, and each for its concept only.
    for neuron in range(len(SETS)):
        mask = torch.zeros(1, len(SETS), dtype=torch.bool)
        mask[0, neuron] = True
        correct = ns.evaluate(model, concepts, fwd_hooks=ns.ablation_hooks(model, mask)).groupby("example")["correct"]
        broken = {concept for concept, all_right in correct.all().items() if not all_right}
        assert broken == {concept for concept, needed in NEEDED.items() if needed == neuron}
        assert correct.nunique().eq(1).all()


@pytest.mark.slow
def test_the_built_in_model_needs_its_all_shared_neurons(animals, backend):
    """At most -.25 against as many random neurons, with the interval below -.15: whole answers, decoded greedily."""
    model, prompts = animals.lens("demo", backend), ns.demo.prompts()[:200]
    sharing = ns.categorise(model, prompts)
    table = ns.ablation_study(
        model, prompts, sharing, types=["all-shared"], controls=["random"], seeds=[0, 1], scoring="exact"
    )
    row = of_all(table).loc[("all-shared", "random")]
    assert row["vs_control"] <= -0.25
    assert row["vs_high"] < -0.15
    assert row["vs_low"] < row["vs_control"] < row["vs_high"]


# What is drawn.


class Drawn:
    """Every mask that the study asks hooks for."""

    def __init__(self, monkeypatch):
        self.masks: dict[tuple, dict] = {}
        draw = study._Draws._draw

        def watched(draws, language, examples):
            mask = draw(draws, language, examples)
            kept = self.masks.setdefault((draws.type.label, draws.ablated, draws.seed), {})
            for example, one in zip(examples, mask, strict=True):
                assert torch.equal(kept.setdefault((example, language), one), one)  # the same whenever it is drawn
            return mask

        monkeypatch.setattr(study._Draws, "_draw", watched)


@pytest.fixture
def small(animals, backend):
    """The built-in model, twelve facts, four languages."""
    model = animals.lens("demo", backend)
    prompts = ns.demo.prompts()[:12].select(["en", "de", "th", "zh"])
    return model, prompts, ns.categorise(model, prompts)


def test_controls_are_what_they_are_said_to_be(small, monkeypatch):
    model, prompts, sharing = small
    drawn = Drawn(monkeypatch)
    ns.ablation_study(model, prompts, sharing, types=["all-shared", "specific"], seeds=[0, 1])
    for type in ("all-shared", "specific"):
        of_type = sharing.mask(type)
        for (example, language), mask in drawn.masks[type, "type", 0].items():
            assert torch.equal(mask, of_type[example])
            assert language in prompts.languages
        for seed in (0, 1):
            for (example, _), mask in drawn.masks[type, "random", seed].items():
                assert torch.equal(mask.sum(-1), of_type[example].sum(-1))
                assert torch.equal(mask, drawn.masks[type, "random", seed][example, "en"])
            for (example, language), mask in drawn.masks[type, "random-active", seed].items():
                if mask.any():
                    assert torch.equal(mask.sum(-1), of_type[example].sum(-1))
                active = sharing.activated(slice(example, example + 1), language=language)[0, 0]
                assert not (mask & ~active).any()
            for (example, _), mask in drawn.masks[type, "magnitude", seed].items():
                assert not (mask & of_type[example]).any()
                count = of_type[example].sum(-1)
                assert torch.equal(mask.sum(-1), count * bool((2 * count <= 512).all()))
            for (example, _), mask in drawn.masks[type, "other-example", seed].items():
                same = [torch.equal(mask, other) for other in of_type]
                assert sum(same) == 1
                assert not same[example]
        assert any(
            not torch.equal(mask, drawn.masks[type, "random", 1][key])
            for key, mask in drawn.masks[type, "random", 0].items()
        )


def test_draws_depend_on_seed_example_and_type_and_not_on_batches_or_neighbours(small, monkeypatch):
    model, prompts, sharing = small
    options = {"types": ["all-shared"], "seeds": [3]}
    drawn = Drawn(monkeypatch)
    whole = ns.ablation_study(model, prompts, sharing, controls=["random", "magnitude"], **options)
    again = ns.ablation_study(model, prompts, sharing, controls=["magnitude", "random"], batch_size=3, **options)
    both = whole.merge(again, on=["type", "ablated", "language", "metric"])
    assert len(both) == len(whole)
    assert (both["value_x"] - both["value_y"]).abs().max() < 1e-4
    first = dict(drawn.masks["all-shared", "random", 3])
    drawn.masks.clear()
    ns.ablation_study(model, prompts[4:8], sharing[4:8], controls=["random"], **options)
    for (example, language), mask in drawn.masks["all-shared", "random", 3].items():
        assert torch.equal(mask, first[example + 4, language])


def test_options_choose_which_neurons(small, monkeypatch):
    model, prompts, sharing = small
    drawn = Drawn(monkeypatch)
    options = {"types": ["all-shared", "specific"], "controls": ["random"], "seeds": [0, 1]}
    masks = {type: sharing.mask(type) for type in options["types"]}

    table = ns.ablation_study(model, prompts, sharing, layers=range(1, 3), **options)
    for mask in drawn.masks["all-shared", "random", 1].values():
        assert not mask[[0, 3]].any()
        assert mask[[1, 2]].any()
    expected = masks["all-shared"][:, [1, 2]].sum((1, 2)).double().mean() / 2
    assert of_all(table).loc[("all-shared", "type"), "neurons"] == pytest.approx(expected.item())

    drawn.masks.clear()
    table = ns.ablation_study(model, prompts, sharing, equal_size=True, **options)
    smallest = torch.minimum(*(mask.sum(-1) for mask in masks.values()))
    for (type, ablated, _), found in drawn.masks.items():
        for (example, _), mask in found.items():
            assert torch.equal(mask.sum(-1), smallest[example])
            assert ablated != "type" or not (mask & ~masks[type][example]).any()
    assert of_all(table)["neurons"].iloc[1:].nunique() == 1
    assert ("all-shared", "type", 1) in drawn.masks  # drawn anew for each seed

    drawn.masks.clear()
    ns.ablation_study(model, prompts, sharing, consistent=0.5, **options)
    often = masks["all-shared"].double().mean(0) >= 0.5
    for (example, _), mask in drawn.masks["all-shared", "type", 0].items():
        assert torch.equal(mask, masks["all-shared"][example] & often)

    drawn.masks.clear()
    table = ns.ablation_study(
        model, prompts, sharing, one_mask=True, **options | {"controls": ["random", "other-example"]}
    )
    for mask in drawn.masks["all-shared", "type", 0].values():
        assert torch.equal(mask, often)
    row = of_all(table).loc[("all-shared", "other-example")]
    assert np.isnan(row["value"])
    assert row["note"] == "all examples have one mask"


def test_one_mask_may_be_found_on_other_prompts(small):
    model, _, sharing = small
    others = ns.demo.prompts()[20:25].select(["en", "de", "th", "zh"])
    options = {"one_mask": True, "types": ["all-shared"], "seeds": [0]}
    table = of_all(ns.ablation_study(model, others, sharing, **options))
    assert table.loc[("all-shared", "random"), "neurons"] > 0
    assert "of other prompts" in table.loc[("all-shared", "random-active"), "note"]
    with pytest.raises(ns.NeuronShareError, match="5 examples of prompts and 12 of types.*one_mask"):
        ns.ablation_study(model, others, sharing)
    with pytest.raises(ns.NeuronShareError, match="types are of other prompts"):
        ns.ablation_study(model, others, sharing[:5])


def test_controls_that_cannot_be_drawn_say_why_and_the_study_goes_on(small):
    model, prompts, sharing = small
    table = of_all(ns.ablation_study(model, prompts, sharing, types=["non-activated"], seeds=[0]))
    for control, why in (("random-active", "fewer neurons are active"), ("magnitude", "fewer neurons are outside")):
        row = table.loc[("non-activated", control)]
        assert row[["value", "difference", "low", "high", "vs_control", "vs_low", "vs_high"]].isna().all()
        assert why in row["note"]
    assert table.loc[("non-activated", "random"), "value"] < 1
    alone = of_all(ns.ablation_study(model, prompts[:1], sharing[:1], types=["all-shared"], seeds=[0]))
    assert alone.loc[("all-shared", "other-example"), "note"] == "there is one example only"
    two = prompts.select(["en", "de"])
    empty = of_all(ns.ablation_study(model, two, ns.categorise(model, two), types=["partial-shared"], seeds=[0]))
    assert empty.loc[("partial-shared", "type"), "note"] == "no neuron is partial-shared"
    assert np.isnan(empty.loc[("partial-shared", "type"), "value"])


def test_where_only_some_examples_can_be_drawn_all_is_compared_on_these(small):
    model, prompts, sharing = small
    table = ns.ablation_study(model, prompts, sharing, types=["specific"], controls=["random-active"], seeds=[0])
    counts, active = sharing.mask("specific").sum(-1), sharing.activated().sum(-1).amin(1)
    able = (counts <= active).all(-1)
    assert 0 < able.sum() < len(prompts)
    row = of_all(table, "log_prob").loc[("specific", "random-active")]
    assert row["note"].startswith(f"only {int(able.sum())} of 12 examples")
    mask = sharing.mask("specific")
    ablated = ns.evaluate(model, prompts, fwd_hooks=lambda language, rows: ns.ablation_hooks(model, mask[rows]))
    kept = {prompts.examples[index] for index in able.nonzero().flatten().tolist()}
    of_type = ablated[ablated["example"].isin(kept)]["log_prob"].mean()
    assert row["vs_control"] == pytest.approx(of_type - row["value"], abs=1e-4)


# The numbers.


def test_values_and_differences_are_those_of_evaluate(small):
    model, prompts, sharing = small
    table = ns.ablation_study(model, prompts, sharing, types=["all-shared"], seeds=[0, 1], controls=["other-example"])
    mask = sharing.mask("all-shared")
    before = ns.evaluate(model, prompts)
    after = ns.evaluate(model, prompts, fwd_hooks=lambda language, rows: ns.ablation_hooks(model, mask[rows]))
    for language in (*prompts.languages, "all"):
        for metric, column in (("accuracy", "correct"), ("log_prob", "log_prob")):
            here = [t if language == "all" else t[t["language"] == language] for t in (before, after)]
            rows = table[(table["language"] == language) & (table["metric"] == metric)].set_index("ablated")
            assert rows.loc["none", "value"] == pytest.approx(here[0][column].mean())
            assert rows.loc["type", "value"] == pytest.approx(here[1][column].mean())
            difference = here[1][column].mean() - here[0][column].mean()
            assert rows.loc["type", "difference"] == pytest.approx(difference)
            control = rows.loc["other-example"]
            assert control["vs_control"] == pytest.approx(rows.loc["type", "value"] - control["value"])
            assert control["difference"] == pytest.approx(control["value"] - rows.loc["none", "value"])
    assert set(table["metric"]) == {"accuracy", "log_prob"}
    assert list(table.columns) == [
        *("type", "ablated", "language", "metric", "value", "difference", "low", "high"),
        *("vs_control", "vs_low", "vs_high", "neurons", "overlap", "note"),
    ]
    assert table.attrs["sharing"]["fingerprint"] == sharing.metadata["fingerprint"]


def test_intervals_are_paired_bootstraps_over_examples():
    """Against resampling by hand; and they do not depend on the order of the examples' labels."""
    differences = np.random.default_rng(1).normal(size=30)
    low, high = study._Bootstrap(20_000).interval(differences)
    generator = np.random.default_rng(2)
    means = [generator.choice(differences, 30).mean() for _ in range(20_000)]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.01)
    assert study._Bootstrap(100).interval(np.full(5, 0.25)) == (0.25, 0.25)


def test_magnitude_controls_are_near_by_the_impact_at_the_last_token(small):
    """The impact that they are matched by, made from caches of single prompts."""
    model, prompts, sharing = small
    draws = []
    original = study.matched

    def watched(noise, mask, impact):
        draws.append(impact)
        return original(noise, mask, impact)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "matched", watched)
        ns.ablation_study(
            model, prompts[:3], sharing[:3], types=["specific"], controls=["magnitude"], seeds=[0], batch_size=100
        )
    for example in range(3):
        tokens = model.to_tokens(prompts.prompts["en"][example], prepend_bos=False)
        _, cache = model.run_with_cache(tokens)
        for layer in range(4):
            post, weights = cache[f"blocks.{layer}.mlp.hook_post"][0, -1], model.blocks[layer].mlp.W_out
            expected = torch.stack([m.abs() * row.norm() for m, row in zip(post, weights, strict=True)])
            assert (draws[0][example, layer] - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "mean"},
        {"mode": "mean", "position": "last"},
        {"mode": "resample"},
        {"mode": "scale", "values": 2.0},
        {"mode": torch.neg},
        {"position": "last"},
        {"position": -2, "skip_special_tokens": False},
        {"skip_special_tokens": True},
        {"length_normalised": True},
    ],
    ids=str,
)
def test_every_mode_and_position_runs_and_differs_from_none(small, options):
    model, prompts, sharing = small
    table = ns.ablation_study(
        model, prompts[:3], sharing[:3], types=["all-shared"], controls=["random"], seeds=[0, 1], **options
    )
    row = of_all(table, "log_prob").loc[("all-shared", "type")]
    assert row["difference"] != 0
    assert np.isfinite(row[["value", "low", "high"]].astype(float)).all()


def test_means_may_be_given(small):
    model, prompts, sharing = small
    options = {"types": ["all-shared"], "controls": [], "mode": "mean", "position": "last"}
    own = ns.ablation_study(model, prompts, sharing, **options)
    given = ns.ablation_study(model, prompts, sharing, values=ns.reference_values(model, prompts), **options)
    pd.testing.assert_frame_equal(own, given)


def test_some_of_the_languages_may_be_studied(small):
    model, prompts, sharing = small
    table = ns.ablation_study(
        model, prompts.select(["zh", "de"]), sharing, types=["specific"], controls=["random-active"], seeds=[0]
    )
    assert set(table["language"]) == {"all", "zh", "de"}


@pytest.mark.usefixtures("as_users_run_it")
class TestBadInput:
    """What is refused, and how it is said."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"types": ["shared"]}, "'shared' is no type of neuron; use one of all-shared"),
            ({"types": []}, "give at least one type"),
            ({"controls": ["luck"]}, r"controls=\['luck'\]; give a list of random, random-active"),
            ({"controls": "random"}, "controls='random'; give a list"),
            ({"seeds": []}, r"seeds=\[\]; give a list of integers"),
            ({"layers": [4]}, r"layers=\[4\]; give some of 0 to 3"),
            ({"layers": []}, r"layers=\[\]; give some"),
            ({"consistent": 0}, "consistent=0; give a share"),
            ({"mode": "shuffle"}, "mode='shuffle' is unknown; use one of zero, mean, resample, scale"),
            ({"mode": "scale"}, "mode='scale' needs a number"),
            ({"position": "any"}, "position='any' is unknown here"),
            ({"position": torch.ones(1, 2).bool()}, "position is a Tensor; a study takes all, last"),
            ({"mode": "resample", "values": torch.ones(4, 512)}, "mode='resample' takes the values of other examples"),
            ({"mode": "mean", "values": {"en": torch.ones(4, 512)}}, "mode='mean': values has none for de, th, zh"),
            ({"scoring": "vibes"}, "scoring='vibes' is unknown; use one of choice, exact"),
            ({"n_resamples": 0}, "n_resamples=0"),
        ],
    )
    def test_options(self, small, options, message):
        model, prompts, sharing = small
        with pytest.raises(ns.NeuronShareError, match=message):
            ns.ablation_study(model, prompts[:2], sharing[:2], **options)

    def test_what_does_not_fit(self, small, animals, backend):
        model, prompts, sharing = small
        with pytest.raises(ns.NeuronShareError, match="prompts is a list and sharing a NeuronSharing"):
            ns.ablation_study(model, ["a"], sharing)
        with pytest.raises(ns.NeuronShareError, match="types are of en, de, th, zh, and not of fr"):
            ns.ablation_study(model, ns.demo.prompts()[:12].select(["en", "fr"]), sharing)
        with pytest.raises(ns.NeuronShareError, match="layers of 512, 512, 512, 512 neurons, .* has 128, 128, 128"):
            ns.ablation_study(animals.lens("bloom", backend), prompts, sharing)
        sharing.metadata["fingerprint"] = "0123456789abcdef-" + sharing.metadata["fingerprint"].split("-")[1]
        with pytest.warns(UserWarning, match="measured on other weights"):
            ns.ablation_study(model, prompts, sharing, types=["specific"], controls=[])


def test_selection_alone_knows_no_model():
    """Pure: a sharing made by hand is enough."""
    activated = torch.rand(6, 3, 2, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    sharing = ns.NeuronSharing.from_activated(activated, languages=LANGUAGES)
    prompts = ns.ParallelPrompts({language: list("abcdef") for language in LANGUAGES})
    selection = controls.Selection(
        sharing, prompts, [ns.NeuronType.SPECIFIC], layers=None, consistent=None, one_mask=False, equal_size=False
    )
    assert selection.drawable(ns.NeuronType.SPECIFIC, "random").examples.all()
    assert torch.equal(selection.drawn(ns.NeuronType.SPECIFIC, 0, [2]), sharing.mask("specific")[[2]])
