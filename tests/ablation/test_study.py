"""The study: on a toy that needs one known neuron, on the built-in model, and its numbers by plain arithmetic."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import tl_neuronshare as ns
from support import zoo
from support.planted import LANGUAGES, NEEDED, SETS, WORDS, save_planted
from tl_neuronshare.ablation import controls, study, targets


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return save_planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def concepts():
    """Both concepts in three languages. A prompt has a word of the other concept first, which must not matter."""
    prompts = {la: [f"{WORDS['moon'][i]} {WORDS['sun'][i]}", f"{WORDS['sun'][i]} {WORDS['moon'][i]}"]
               for i, la in enumerate(LANGUAGES)}  # fmt: skip
    answers = {language: [" hot", " cold"] for language in LANGUAGES}
    return ns.ParallelPrompts(
        prompts, answers, {la: [[" hot", " cold"]] * 2 for la in LANGUAGES}, examples=["sun", "moon"]
    )


def of_all(table, metric="accuracy"):
    return table.query("language == 'all' and metric == @metric").set_index(["type", "ablated"])


@pytest.mark.slow
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
        assert types[["low", "high"]].isna().all(axis=None)  # there are only two examples
        assert table.loc[("all-shared", "random"), "vs_control"] < -0.8  # one of 24 drawn: sometimes the needed one
        assert table.loc[("all-shared", "magnitude"), "vs_control"] == -1
        assert table.loc[("all-shared", "other-example"), "vs_control"] == -1
        # The needed neuron is one of the three or four that are active in a language.
        assert -1 < table.loc[("all-shared", "random-active"), "vs_control"] < -0.5
    # Neuron by neuron: only the needed neurons matter, and each only for its concept.
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
    """Every mask for which the study makes hooks."""

    def __init__(self, monkeypatch):
        self.masks: dict[tuple, dict] = {}
        for kind in (controls.Itself, *map(type, controls.CONTROLS.values())):
            monkeypatch.setattr(kind, "draw", self.watched(kind.draw))

    def watched(self, original):
        def draw(control, draw):
            drawn = original(control, draw)
            kept = self.masks.setdefault((draw.target, draw.control, draw.seed), {})
            for example, mask in zip(draw.examples, drawn.mask, strict=True):
                key = (example, draw.language)
                assert torch.equal(kept.setdefault(key, mask), mask)  # the same whenever it is drawn
            return drawn

        return draw


@pytest.fixture
def small(animals):
    """The built-in model with twelve facts in four languages; only in one model class, to save time."""
    model = animals.lens("demo", zoo.BACKENDS[-1])
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
    assert ("all-shared", "type", 1) in drawn.masks  # drawn again for each seed

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
    for some in (others, others.select(["zh", "de"])):
        with pytest.raises(ns.NeuronShareError, match="types are of other prompts"):
            ns.ablation_study(model, some, sharing[:5])
    some = of_all(ns.ablation_study(model, others.select(["zh", "de"]), sharing[:5], **options))
    assert "of other prompts" in some.loc[("all-shared", "random-active"), "note"]


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
    assert empty.loc[("partial-shared", "type"), "note"] == "'partial-shared' has no neuron"
    assert np.isnan(empty.loc[("partial-shared", "type"), "value"])
    options = {"types": ["all-shared", "partial-shared"], "equal_size": True, "seeds": [0]}
    equal = of_all(ns.ablation_study(model, two, ns.categorise(model, two), **options))
    assert equal.loc[("all-shared", "type"), "note"] == "'partial-shared' has no neuron"


def test_where_only_some_examples_can_be_drawn_all_is_compared_on_these(small):
    model, prompts, sharing = small
    table = ns.ablation_study(model, prompts, sharing, types=["specific"], controls=["random-active"], seeds=[0])
    counts, active = sharing.mask("specific").sum(-1), sharing.activated().sum(-1).amin(1)
    able = (counts <= active).all(-1)
    assert 0 < able.sum() < len(prompts)
    row = of_all(table, "log_prob").loc[("specific", "random-active")]
    assert row["note"].startswith(f"only {int(able.sum())} of 12 examples")
    assert row["examples"] == able.sum()
    mask = sharing.mask("specific")
    ablated = ns.evaluate(model, prompts, fwd_hooks=lambda language, rows: ns.ablation_hooks(model, mask[rows]))
    kept = {prompts.examples[index] for index in able.nonzero().flatten().tolist()}
    of_type = ablated[ablated["example"].isin(kept)]["log_prob"].mean()
    assert row["vs_control"] == pytest.approx(of_type - row["value"], abs=1e-4)


# The numbers.


def test_values_and_differences_are_those_of_evaluate(small, monkeypatch):
    model, prompts, sharing = small
    drawn = Drawn(monkeypatch)
    answers = {}
    table = ns.ablation_study(
        model,
        prompts,
        sharing,
        types=["all-shared"],
        seeds=[0, 1],
        controls=["other-example"],
        on_run=lambda type, ablated, seed, found: answers.update({(type, ablated, seed): found}),
    )
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
            # Intervals and overlap in a different way: from scores by example, and from the masks that were drawn.
            by_example = {
                name: of_one[of_one["language"] == language if language != "all" else slice(None)]
                .groupby("example", sort=False)[column]
                .mean()
                for name, of_one in answers.items()
            }
            both = by_example["all-shared", "other-example", 0], by_example["all-shared", "other-example", 1]
            of_control, of_type = sum(both) / 2, by_example["all-shared", "type", 0]
            before_that = by_example["none", "none", None]
            for low, high, spread in (
                ("low", "high", of_control - before_that),
                ("vs_low", "vs_high", of_type - of_control),
            ):
                resampled = interval_by_hand(spread.to_numpy(dtype=float))
                assert (control[low], control[high]) == pytest.approx(resampled, abs=0.1 * spread.std() + 1e-9)
            pairs = [
                (int((one & mask[example]).sum()), int(one.sum()))
                for seed in (0, 1)
                for (example, spoken), one in drawn.masks["all-shared", "other-example", seed].items()
                if language in ("all", spoken)
            ]
            shared, size = map(sum, zip(*pairs, strict=True))
            assert control["overlap"] == pytest.approx(shared / size)
            assert control["neurons"] == pytest.approx(size / len(pairs) / 4)
    assert set(table["metric"]) == {"accuracy", "known_accuracy", "log_prob"}
    assert list(table.columns) == [
        *("type", "ablated", "language", "metric", "value", "difference", "low", "high"),
        *("vs_control", "vs_low", "vs_high", "neurons", "overlap", "examples", "note"),
    ]
    assert table.attrs["sharing"]["fingerprint"] == sharing.metadata["fingerprint"]


def test_known_facts_are_what_the_unablated_model_answers_rightly(animals, backend):
    """Of a random model, which knows about half of the facts by chance; other ones in each language."""
    texts = {
        language: [f"{word} {number}" for number in range(24)] for language, word in (("en", "sun"), ("de", "rot"))
    }
    choices = {language: [[" a", " b"]] * 24 for language in texts}
    prompts = ns.ParallelPrompts(texts, {language: [" a", " b"] * 12 for language in texts}, choices)
    model = animals.lens("llama", backend)
    sharing, answers = ns.categorise(model, prompts), {}
    table = ns.ablation_study(
        model,
        prompts,
        sharing,
        types=["specific"],
        controls=["random"],
        seeds=[0, 1],
        on_run=lambda type, ablated, seed, found: answers.update({(ablated, seed): found["correct"].to_numpy(float)}),
    )
    assert table.attrs["chance"] == 0.5
    known = answers["none", None] == 1
    is_of = {"en": np.arange(48) < 24, "de": np.arange(48) >= 24}
    assert {known[rows].mean() for rows in is_of.values()} != {0.0, 1.0}
    rows = table.query("metric == 'known_accuracy'").set_index(["language", "ablated"])
    of_control = (answers["random", 0] + answers["random", 1]) / 2
    for language, here in is_of.items():
        counted, of_type = known & here, answers["type", 0]
        assert rows.loc[(language, "none"), "value"] == 1
        assert (rows.loc[language]["examples"] == counted.sum()).all()
        assert rows.loc[(language, "type"), "value"] == pytest.approx(of_type[counted].mean())
        assert rows.loc[(language, "type"), "difference"] == pytest.approx(of_type[counted].mean() - 1)
        assert rows.loc[(language, "random"), "value"] == pytest.approx(of_control[counted].mean())
        against = of_type[counted] - of_control[counted]
        assert rows.loc[(language, "random"), "vs_control"] == pytest.approx(against.mean())
        low, high = interval_by_hand(against)
        assert rows.loc[(language, "random"), ["vs_low", "vs_high"]].tolist() == pytest.approx(
            [low, high], abs=0.1 * against.std() + 1e-9
        )
    by_example = [
        np.mean([answers["type", 0][place] for place in (example, 24 + example) if known[place]])
        for example in range(24)
        if known[example] or known[24 + example]
    ]
    assert rows.loc[("all", "type"), "value"] == pytest.approx(np.mean(by_example))
    assert rows.loc[("all", "type"), "examples"] == len(by_example)
    assert rows.loc[("all", "type"), "neurons"] > 0


def test_a_model_that_knows_nothing(small):
    model, prompts, sharing = small
    wrong = ns.ParallelPrompts(
        prompts.prompts, {language: [" nonsense"] * len(prompts) for language in prompts.languages}
    )
    table = ns.ablation_study(
        model, wrong, sharing, types=["all-shared"], controls=["random"], seeds=[0], scoring="exact"
    )
    rows = table.query("metric == 'known_accuracy'")
    assert rows["value"].isna().all()
    assert (rows["examples"] == 0).all()
    assert (rows.query("ablated != 'none'")["note"] == "no answer is right to begin with").all()


def interval_by_hand(differences):
    """The middle 95 % of means over examples that are drawn again with replacement."""
    generator = np.random.default_rng(3)
    drawn = generator.integers(len(differences), size=(20_000, len(differences)))
    return tuple(np.quantile(differences[drawn].mean(1), [0.025, 0.975]))


@pytest.mark.parametrize("options", [{"consistent": 0.5}, {"one_mask": True}, {"equal_size": True}, {"layers": [0, 1]}])
def test_magnitude_draws_none_of_the_type_whatever_the_options(small, monkeypatch, options):
    """It draws neither ablated nor spared neurons of the type, and overlap counts the whole type."""
    model, prompts, sharing = small
    drawn = Drawn(monkeypatch)
    kinds = {"types": ["all-shared", "specific"], "controls": ["magnitude", "random"], "seeds": [0]}
    table = of_all(ns.ablation_study(model, prompts, sharing, **kinds, **options))
    for type in kinds["types"]:
        whole = sharing.mask(type)
        masks = drawn.masks[type, "magnitude", 0]
        assert sum(int(mask.sum()) for mask in masks.values())
        for (example, _), mask in masks.items():
            assert not (mask & whole[example]).any()
        assert table.loc[(type, "magnitude"), "overlap"] == 0
        random = drawn.masks[type, "random", 0]
        expected = sum(int((mask & whole[example]).sum()) for (example, _), mask in random.items())
        counted = table.loc[(type, "random"), "overlap"] * sum(int(mask.sum()) for mask in random.values())
        if not options.get("one_mask"):
            assert counted == pytest.approx(expected)


def test_one_mask_has_one_random_control_a_seed(small, monkeypatch):
    model, prompts, sharing = small
    drawn = Drawn(monkeypatch)
    ns.ablation_study(model, prompts, sharing, one_mask=True, types=["all-shared"], controls=["random"], seeds=[0, 1])
    for seed in (0, 1):
        (first, *others) = drawn.masks["all-shared", "random", seed].values()
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("position", ["all", "last"])
def test_means_and_resampled_values_are_those_of_these_prompts(small, position):
    """The replacements, made by hand: the mean over all tokens or the last; a different example's last token."""
    model, prompts, sharing = small
    options = {"types": ["all-shared"], "controls": [], "position": position, "seeds": [4]}
    mask = sharing.mask("all-shared")
    means = ns.reference_values(model, prompts, position=position)
    each = ns.reference_values(model, prompts, each=True)
    masks = targets.masks_of_types(sharing, ["all-shared"])
    chosen = targets.Targets(masks, prompts.examples, sharing.widths, targets.Choice(), active=sharing)
    others = [chosen.other_example(4, "all-shared", "resample", example) for example in range(12)]
    assert all(other != example for example, other in enumerate(others))

    def where(prompt_tokens):
        return {} if position == "all" else {"position": "last", "prompt_tokens": prompt_tokens}

    for mode, values in (
        ("mean", lambda language, rows: means[language]),
        ("resample", lambda language, rows: each[language][[others[row] for row in rows.tolist()]]),
    ):
        table = of_all(ns.ablation_study(model, prompts, sharing, mode=mode, **options), "log_prob")
        by_hand = ns.evaluate(
            model,
            prompts,
            fwd_hooks=lambda language, rows, prompt_tokens, mode=mode, values=values: ns.ablation_hooks(
                model, mask[rows], mode=mode, values=values(language, rows), **where(prompt_tokens)
            ),
        )
        assert table.loc[("all-shared", "type"), "value"] == pytest.approx(by_hand["log_prob"].mean(), abs=1e-4)


def test_special_tokens_are_left_alone_on_request(animals, backend, quiz):
    """A model whose prompts begin with a BOS."""
    model = animals.lens("gpt2", backend)
    sharing = ns.categorise(model, quiz)
    mask = sharing.mask("all-shared")
    options = {"types": ["all-shared"], "controls": []}
    found = {
        skip: of_all(ns.ablation_study(model, quiz, sharing, skip_special_tokens=skip, **options), "log_prob")
        for skip in (True, False)
    }
    by_hand = ns.evaluate(
        model, quiz, fwd_hooks=lambda language, rows, tokens: ns.ablation_hooks(model, mask[rows], tokens=tokens)
    )
    without_bos = found[True].loc[("all-shared", "type"), "value"]
    assert without_bos == pytest.approx(by_hand["log_prob"].mean(), abs=1e-4)
    assert abs(without_bos - found[False].loc[("all-shared", "type"), "value"]) > 1e-3


def test_the_impacts_for_magnitude_are_measured_once_for_all_seeds(small, monkeypatch):
    """And where they do not fit, each time anew, with the same result."""
    model, prompts, sharing = small
    measured = []
    original = study._Study._measured_impact

    def watched(self, language, examples):
        measured.append((language, tuple(examples)))
        return original(self, language, examples)

    monkeypatch.setattr(study._Study, "_measured_impact", watched)
    few = {"types": ["specific"], "controls": ["magnitude"], "seeds": [0, 1], "n_resamples": 10}
    once = ns.ablation_study(model, prompts[:3], sharing[:3], **few)
    assert len(measured) == len(set(measured)) > 0
    monkeypatch.setattr(study, "_KEPT_IMPACTS", 0)
    again = ns.ablation_study(model, prompts[:3], sharing[:3], **few)
    assert len(measured) == 3 * len(set(measured))
    pd.testing.assert_frame_equal(once, again)


def test_magnitude_controls_are_near_by_the_impact_at_the_last_token(small):
    """The impact by which neurons are matched, made from caches of single prompts."""
    model, prompts, sharing = small
    draws = []
    original = controls.matched

    def watched(noise, mask, impact):
        draws.append(impact)
        return original(noise, mask, impact)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(controls, "matched", watched)
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


def negated(tensor):
    return -tensor


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "mean"},
        {"mode": "mean", "position": "last"},
        {"mode": "resample"},
        {"mode": "scale", "values": 2.0},
        {"mode": negated},
        {"position": "last"},
        {"position": -2, "skip_special_tokens": False},
        {"skip_special_tokens": True},
        {"length_normalised": True},
    ],
    ids=lambda options: ",".join(f"{name}={getattr(value, '__name__', value)}" for name, value in options.items()),
)
def test_every_mode_and_position_runs_and_differs_from_none(small, options):
    model, prompts, sharing = small
    table = ns.ablation_study(
        model, prompts[:10], sharing[:10], types=["all-shared"], controls=["random"], seeds=[0], **options
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
    """What is refused, and with which message."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"types": ["shared"]}, "'shared' is not a type of neuron; use one of all-shared"),
            ({"types": []}, r"types=\[\]; give a list of types, each once"),
            ({"controls": ["luck"]}, r"controls=\['luck'\]; give a list of random, random-active"),
            ({"controls": "random"}, "controls='random'; give a list"),
            (
                {"mode": "mean", "values": dict.fromkeys(["en", "de", "th", "zh"], torch.ones(2, 4, 512))},
                "not a float tensor",
            ),
            ({"position": -99}, "'en', example .*: the prompt has . token.s., too few for position=-99"),
            ({"layers": 3}, "layers=3; give the numbers of some layers"),
            ({"layers": [True]}, "give the numbers of some layers, each once"),
            ({"seeds": 3}, "seeds=3; give a list of whole numbers"),
            ({"one_mask": "yes"}, "one_mask='yes'; give True or False"),
            ({"consistent": "a"}, "consistent='a'; give a share"),
            ({"position": "lst"}, "position='lst' is unknown here; use all, last"),
            ({"skip_special_tokens": True, "position": "last"}, "Special tokens can be skipped only"),
            ({"seeds": []}, r"seeds=\[\]; give a list of whole numbers, each once"),
            ({"layers": [4]}, r"layers=\[4\]; give some of 0 to 3"),
            ({"layers": []}, r"layers=\[\]; give the numbers of some layers"),
            ({"consistent": 0}, "consistent=0; give a share"),
            ({"mode": "shuffle"}, "mode='shuffle' is unknown; use one of zero, mean, resample, scale"),
            ({"mode": "scale"}, "mode='scale' needs a number"),
            ({"position": "any"}, "position='any' is unknown here"),
            ({"position": torch.ones(1, 2).bool()}, "position is a Tensor; a study takes all, last"),
            ({"mode": "resample", "values": torch.ones(4, 512)}, "mode='resample' takes the values of other examples"),
            ({"mode": "mean", "values": {"en": torch.ones(4, 512)}}, "mode='mean': values has none for de, th, zh"),
            ({"scoring": "vibes"}, "scoring='vibes' is unknown; use one of choice, exact"),
        ],
    )
    def test_options(self, small, options, message):
        model, prompts, sharing = small
        runs = []
        with pytest.raises(ns.NeuronShareError, match=message):
            ns.ablation_study(model, prompts[:2], sharing[:2], on_run=lambda *run: runs.append(run), **options)
        assert not runs  # before anything is run

    def test_one_example_has_no_other_to_resample(self, small):
        model, prompts, sharing = small
        with pytest.raises(ns.NeuronShareError, match="values of another example, but there is only one"):
            ns.ablation_study(model, prompts[:1], sharing[:1], mode="resample")

    def test_what_does_not_fit(self, small, animals):
        model, prompts, sharing = small
        with pytest.raises(ns.NeuronShareError, match="prompts is a list; make it ParallelPrompts"):
            ns.ablation_study(model, ["a"], sharing)
        with pytest.raises(ns.NeuronShareError, match="types are of en, de, th, zh, and not of fr"):
            ns.ablation_study(model, ns.demo.prompts()[:12].select(["en", "fr"]), sharing)
        with pytest.raises(ns.NeuronShareError, match="layers of 512, 512, 512, 512 neurons, .* has 128, 128, 128"):
            ns.ablation_study(animals.lens("bloom", "bridge"), prompts, sharing)
        sharing.metadata["fingerprint"] = "0123456789abcdef-" + sharing.metadata["fingerprint"].split("-")[1]
        with pytest.warns(UserWarning, match="measured on different weights"):
            ns.ablation_study(model, prompts, sharing, types=["specific"], controls=[])
