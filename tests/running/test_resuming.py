"""Runs that are stopped, and called again: the same result to the bit, and nothing is run twice."""

from __future__ import annotations

import copy

import pytest
import torch
from tokenizers import normalizers

import tl_neuronshare as ns
from support.prompts import QUIZ
from support.runs import KEPT, StoppedError, facts, passes
from tl_neuronshare import models
from tl_neuronshare.running import segments, tallying

# How many forward passes a batch has at most, where it has more than one: those of a control by impact, those that
# decode an answer. References and impacts are measured again in each call, for every batch of the languages that are
# left.
MORE_PASSES = {"exact": 3, "causal check": 4, "study": 14, "study mean": 21, "study resample": 21}
SLOW = [pytest.param(name, marks=[pytest.mark.slow] * ("study" in name)) for name in KEPT]


@pytest.fixture(params=["whole", "in parts"])
def in_parts(request, monkeypatch):
    """With as few examples in a segment, and texts in a group, as there can be; and with all together."""
    if request.param == "in parts":
        monkeypatch.setattr(segments, "_MOST_PROMPTS", 1)
        monkeypatch.setattr(tallying, "_PIECES", 3)


def expected_of(model, name):
    with passes(model) as undisturbed:
        result = KEPT[name](model, QUIZ)
    return facts(result), undisturbed.done


def needed_by(model, name):
    """How many passes a call makes beside those that it keeps: `categorise` of what the others take."""
    if not name.startswith(("attribute", "top", "causal", "study")):
        return 0
    with passes(model) as needed:
        KEPT["categorise"](model, QUIZ)
        for _ in range(0 if "study" in name else 3 if "causal" in name else 1):
            models.added_through(model)
    return needed.done


@pytest.mark.parametrize("name", SLOW)
def test_a_run_that_is_stopped_anywhere_goes_on(animals, name, in_parts, tmp_path):
    model = animals.lens("bloom", "bridge")
    KEPT[name](model, QUIZ)  # makes the checks
    expected, n_passes = expected_of(model, name)
    again = needed_by(model, name)
    n_kept, most_lost = n_passes - again, MORE_PASSES.get(name, 1) - 1
    assert n_kept >= 5
    for limit in range(0, n_kept, 1 if n_kept < 20 else 7):
        out = tmp_path / str(limit)
        with passes(model, limit=again + limit) as first, pytest.raises(StoppedError):
            KEPT[name](model, QUIZ, out=out)
        assert first.done == again + limit
        with passes(model) as second:
            assert facts(KEPT[name](model, QUIZ, out=out)) == expected
        assert n_kept - limit <= second.done - again <= n_kept - limit + most_lost
        with passes(model) as third:  # what is done is opened
            assert facts(KEPT[name](model, QUIZ, out=out)) == expected
        assert third.done == again
        assert not list(out.glob("*.part"))


@pytest.mark.parametrize("name", SLOW)
def test_a_run_that_is_stopped_again_and_again_ends(animals, name, in_parts, tmp_path):
    model = animals.lens("bloom", "bridge")
    expected, n_passes = expected_of(model, name)
    at_a_time = needed_by(model, name) + 2 * MORE_PASSES.get(name, 1) + 1
    for _ in range(n_passes):
        try:
            with passes(model, limit=at_a_time):
                result = KEPT[name](model, QUIZ, out=tmp_path)
            break
        except StoppedError:
            pass
    assert facts(result) == expected


def test_what_is_whole_is_all_that_is_left(animals, in_parts, tmp_path):
    model = animals.lens("bloom", "bridge")
    for name, left in {
        "categorise": {"about.json", "sharing.safetensors"},
        "thresholds": {"about.json", "threshold-0.0.safetensors", "threshold-0.1.safetensors"},
        "rates": {"about.json", "counts.safetensors"},
    }.items():
        KEPT[name](model, QUIZ, out=tmp_path / name)
        assert {file.name for file in (tmp_path / name).iterdir()} == left


@pytest.mark.parametrize("n_begun", [3, 4])
def test_more_text_goes_on_from_what_was_counted(animals, n_begun, monkeypatch, tmp_path):
    """Pieces are planned in twos, and the text that was counted may end in the middle of two."""
    model = animals.lens("bloom", "bridge")
    monkeypatch.setattr(tallying, "_PIECES", 2)
    texts = {"en": [f"The sky is {word}." for word in ("blue", "red", "so grey", "and so on", "dark")], "de": ["Ja."]}
    how = {"batch_size": 2, "progress": False}
    begun = {language: of_language[:n_begun] for language, of_language in texts.items()}
    assert facts(ns.activation_rates(model, begun, out=tmp_path, **how)) == facts(
        ns.activation_rates(model, begun, **how)
    )
    with passes(model) as more:
        found = ns.activation_rates(model, {name: iter(each) for name, each in texts.items()}, out=tmp_path, **how)
    assert facts(found) == facts(ns.activation_rates(model, texts, **how))
    assert more.done == (1 if n_begun == 4 else 2)
    changed = texts | {"en": ["The sea is blue.", *texts["en"][1:]]}
    with pytest.raises(ns.NeuronShareError, match="'en': the texts do not begin with those that the folder was"):
        ns.activation_rates(model, changed, out=tmp_path, **how)
    with pytest.raises(ns.NeuronShareError, match="'en': the folder has read 5 pieces of text, and these are 2; give"):
        ns.activation_rates(model, {"en": texts["en"][:2], "de": ["Ja."]}, out=tmp_path, **how)


DIFFERENT = {
    "categorise": [{"threshold": 0.5}, {"position": "any"}, {"batch_size": 3}, {"prepend_bos": True}],
    "evaluate": [{"scoring": "exact"}, {"length_normalised": True}, {"batch_size": 3}],
}


@pytest.mark.parametrize("function", DIFFERENT)
def test_a_folder_of_a_different_call_is_refused(animals, function, tmp_path):
    model, other = (animals.lens(name, "bridge") for name in ("bloom", "llama"))
    run = getattr(ns, function)
    run(model, QUIZ, out=tmp_path, progress=False)
    calls = [(model, QUIZ, options) for options in DIFFERENT[function]]
    for each, _, options in [*calls, (other, QUIZ, {})]:
        run(each, QUIZ, progress=False, **options)  # makes the checks
    calls += [(other, QUIZ, {}), (model, QUIZ[:2], {}), (model, QUIZ.select(["de", "en", "zh"]), {})]
    for each, prompts, options in calls:
        with passes(each) as made, pytest.raises(ns.NeuronShareError, match="belongs to a different call: its "):
            run(each, prompts, out=tmp_path, progress=False, **options)
        assert made.done == 0
    between = ns.evaluate if run is ns.categorise else ns.categorise
    with pytest.raises(ns.NeuronShareError, match="its call is "):
        between(model, QUIZ, out=tmp_path, progress=False)


@pytest.mark.parametrize("function", [ns.categorise, ns.evaluate])
def test_a_folder_of_different_surroundings_is_refused(animals, function, monkeypatch, tmp_path):
    model = animals.lens("bloom", "bridge")
    function(model, QUIZ, out=tmp_path, progress=False)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ns.NeuronShareError, match="its autocast is None, and here it is 'torch.bfloat16'"),
    ):
        function(model, QUIZ, out=tmp_path, progress=False)
    model.tokenizer(["a", "b b b"], padding=True)  # how it pads meanwhile does not matter
    function(model, QUIZ, out=tmp_path, progress=False)
    changed = copy.deepcopy(model.tokenizer)
    changed.backend_tokenizer.normalizer = normalizers.Lowercase()
    monkeypatch.setattr(model, "tokenizer", changed)
    with pytest.raises(ns.NeuronShareError, match="its tokenizer is"):
        function(model, QUIZ, out=tmp_path, progress=False)


def test_studies_of_different_neurons_have_different_folders(animals, tmp_path):
    model = animals.lens("bloom", "bridge")
    sharing = ns.categorise(model, QUIZ, progress=False)
    masks = {"one": sharing.mask("specific")}
    how = {"seeds": [0], "n_resamples": 10, "controls": ["random"], "progress": False}
    ns.ablation_study(model, QUIZ, masks, out=tmp_path, **how)
    changed = {"one": masks["one"].clone()}
    changed["one"][0, 0, 0] ^= True
    for options in ({}, {"mode": "mean"}, {"seeds": [1]}):
        with pytest.raises(ns.NeuronShareError, match="belongs to a different call"):
            ns.ablation_study(model, QUIZ, masks if options else changed, out=tmp_path, **how | options)
    active = ns.NeuronSharing.from_activated(
        torch_bits(sharing), languages=sharing.languages, metadata={**sharing.metadata}
    )
    ns.ablation_study(model, QUIZ, masks, active=sharing, out=tmp_path / "active", **how)
    with pytest.raises(ns.NeuronShareError, match="belongs to a different call"):
        ns.ablation_study(model, QUIZ, masks, active=active, out=tmp_path / "active", **how)


def torch_bits(sharing):
    """What is activated, but for one neuron."""
    activated = sharing.activated(slice(None)).clone()
    activated[0, 0, 0, 0] ^= True
    return activated


def test_examples_with_other_labels_are_different_examples(animals, tmp_path):
    """The neurons of a control are drawn by the examples' labels."""
    model = animals.lens("bloom", "bridge")
    named = ns.ParallelPrompts(QUIZ.prompts, QUIZ.answers, QUIZ.choices, examples=["a", "b", "c"])
    how = {"types": ["all-shared"], "controls": ["random"], "seeds": [0], "progress": False}
    ns.ablation_study(model, QUIZ, ns.categorise(model, QUIZ), out=tmp_path, **how)
    with pytest.raises(ns.NeuronShareError, match="belongs to a different call: its fingerprint_of_examples is"):
        ns.ablation_study(model, named, ns.categorise(model, named), out=tmp_path, **how)
