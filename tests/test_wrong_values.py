"""Every public function with every kind of wrong value in every argument: an error that says so, or a result.

The functions are found by themselves: one without a call here fails the first test. The type checks of the other tests
are off, since users do not have them.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

import tl_neuronshare as ns
from support import sources
from support.prompts import ANSWERS, CHOICES, PROMPTS

pytestmark = pytest.mark.usefixtures("as_users_run_it")
MODULES = (ns.demo, ns.methods, ns.plots, ns.tasks)


class Odd:
    """Something of a class that the library does not know."""


def wrong_values() -> dict[str, Any]:
    """Values that are wrong for nearly every argument; made anew for each call, since a generator is used up."""
    return {
        "an object": Odd(),
        "None": None,
        "a truth": True,
        "a negative number": -1,
        "zero": 0,
        "a fraction": 1.5,
        "NaN": math.nan,
        "infinity": math.inf,
        "a huge number": 10**30,
        "a text": "x",
        "no text": "",
        "a long text": "x" * 5000,
        "half a surrogate": "\ud800",
        "bytes": b"x",
        "an empty list": [],
        "a list of objects": [Odd()],
        "a list of numbers": [3, -7],
        "a list with NaN": [math.nan],
        "a set": {"en", "de"},
        "a mapping": {"en": None},
        "an empty mapping": {},
        "a generator": (each for each in ("en", "de")),
        "a function": lambda *args: None,
        "a class": Odd,
        "a tensor": torch.tensor([math.nan, 1.0]),
        "complex numbers": torch.tensor([[1j]]),
        "a table": pd.DataFrame({"x": [1]}),
    }


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions, classes, and the methods of classes, by name."""
    for name in ns.__all__:
        thing = getattr(ns, name)
        if inspect.isclass(thing) and not issubclass(thing, Exception | ns.NeuronType):
            yield name, thing
            for method in vars(thing):
                if not method.startswith("_") and callable(getattr(thing, method)):
                    yield f"{name}.{method}", getattr(thing, method)
        elif inspect.isfunction(thing):
            yield name, thing
    for module in MODULES:
        for name, thing in vars(module).items():
            if inspect.isfunction(thing) and not name.startswith("_") and thing.__module__.startswith(module.__name__):
                yield f"{module.__name__.removeprefix('tl_neuronshare.')}.{name}", thing


FUNCTIONS = dict(public())
# Used between the library's own modules: what calls them has checked what it gives.
INTERNAL = {
    f"SharingRecorder.{name}"
    for name in (
        "by_example given header of_examples recorded_pass require_all_recorded result warn_of_site warn_once where"
    ).split()
}


@pytest.fixture(scope="module")
def calls(animals, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """A call that is right, for each function."""
    folder = tmp_path_factory.mktemp("files")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return right_calls(animals, folder)


def right_calls(animals, folder) -> dict[str, dict[str, Any]]:
    model = animals.lens("bloom", "bridge")
    prompts = ns.ParallelPrompts(PROMPTS, ANSWERS, CHOICES, examples=["capital/France", "sum/23", "word/sky"])
    quiet = {"progress": False}
    texts = {language: list(of_language) for language, of_language in prompts.prompts.items()}
    sharing = ns.categorise(model, prompts, **quiet)
    rates = ns.activation_rates(model, texts, **quiet)
    histograms = ns.value_histograms(model, texts, n_bins=4, **quiet)
    masks = ns.methods.lape(rates, share=0.5)
    mask = sharing.mask("all-shared")
    means = ns.reference_values(model, texts, position="all", **quiet)
    each = ns.reference_values(model, texts, each=True, position="all", **quiet)
    few = {"n_resamples": 3, **quiet}
    study = {"model": model, "prompts": prompts, "seeds": [0], "controls": ["random"], **few}
    attributed = ns.attribute(model, prompts, sharing, **few)
    overlap = ns.language_overlap(sharing, n_resamples=3)
    four = ["en", "de", "ru", "zh"]
    similarity, pairs = ns.same_family(four), ns.same_script(four)
    caches = {language: model.run_with_cache(of_language[0])[1] for language, of_language in texts.items()}
    cross = ns.cross_ablation(model, texts, masks, controls=["random"], seeds=[0], **few)
    dose = ns.dose_response(sharing=sharing, type="all-shared", shares=[0.5], **study)
    ladder = ns.overlap_ladder(sharing, ns.facts_of(prompts))
    frame = prompts.to_frame()
    methods = {"masks": {"one": masks, "two": masks}, "is_neuron": sharing.is_neuron}
    along = ns.types_along(model, prompts, before=1, after=1, **quiet)
    steps = ns.side_by_side(along.results, name="step", mismatches=1)
    for name, save in {"sharing": sharing.save, "rates": rates.save, "histograms": histograms.save}.items():
        save(folder / f"{name}.safetensors")
    ns.save_masks(masks, folder / "masks.safetensors")
    torch.save([[torch.tensor([0]), torch.tensor([1])]], folder / "lape.pth")
    (folder / "table.csv").write_text("example,language,prompt,answer\n1,en,a,b\n1,de,c,d\n", "utf-8")
    sources.mpararel(folder / "mpararel")
    sources.mzsre(folder / "mzsre")
    sources.mgsm(folder / "mgsm")
    sources.xnli(folder / "xnli.tsv")
    sources.translations(folder / "devtest")
    recorder = ns.SharingRecorder(model, ["en", "de"], 1)
    for language in recorder.languages:
        model.run_with_hooks("The sky", fwd_hooks=recorder.fwd_hooks(language, [0]))
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    widths, n_layers = sharing.widths, len(sharing.widths)
    post = torch.zeros(2, widths[0], device="cpu")
    causal = {"target": "logit", "layer": 0, "score": "generation", "language": "all"}
    causal |= {"value": 0.5, "low": 0.4, "high": 0.6}
    growth = sharing.persistence().assign(inputs=3)
    summary = sharing.summary(mismatches=1)
    return {
        "NeuronRates": {
            "counts": rates.counts,
            "tokens": rates.tokens,
            "languages": rates.languages,
            "widths": rates.widths,
            "hooks": rates.hooks,
            "metadata": rates.metadata,
        },
        "NeuronRates.select": {"self": rates, "languages": list(rates.languages)[:2]},
        "NeuronRates.by_language": {"self": rates},
        "NeuronRates.save": {"self": rates, "path": folder / "again.safetensors"},
        "NeuronRates.load": {"path": folder / "rates.safetensors"},
        "NeuronSharing": {
            "packed": sharing.bits.stored,
            "languages": sharing.languages,
            "widths": widths,
            "hooks": sharing.hooks,
            "metadata": sharing.metadata,
        },
        "NeuronSharing.from_activated": {"activated": sharing.activated(), "languages": sharing.languages},
        "NeuronSharing.from_values": {"values": {"en": torch.ones(1, 1, 2), "de": torch.zeros(1, 1, 2)}},
        "NeuronSharing.concatenate": {"results": [sharing, sharing[:1]]},
        "NeuronSharing.save": {"self": sharing, "path": folder / "again.safetensors"},
        "NeuronSharing.load": {"path": folder / "sharing.safetensors"},
        "NeuronSharing.mask": {"self": sharing, "type": "all-shared"},
        **{
            f"NeuronSharing.{name}": {"self": sharing}
            for name in (
                "activated computed times_of_types mismatched summary by_language persistence "
                "never_activated intersections overlap same_last_token"
            ).split()
        },
        "NeuronSharing.experts": {"self": sharing},  # not of a mixture: see test_wrong_values_are_refused
        "NeuronSharing.types_of": {"self": sharing, "examples": [0]},
        "ParallelPrompts": {"prompts": texts},
        "ParallelPrompts.select": {"self": prompts, "languages": list(prompts.languages)[:2]},
        "ParallelPrompts.where": {"self": prompts, "condition": [True, False, True]},
        "ParallelPrompts.with_chat_template": {"self": prompts, "tokenizer": tokenizer},
        "ParallelPrompts.to_frame": {"self": prompts},
        "ParallelPrompts.from_frame": {"frame": frame},
        "ParallelPrompts.from_dataset": {"dataset": datasets.Dataset.from_pandas(frame)},
        "SharingRecorder": {"model": model, "languages": ["en", "de"], "n_examples": 1},
        "SharingRecorder.fwd_hooks": {"self": recorder, "language": "en", "examples": [0]},
        "SharingRecorder.sharing": {"self": recorder},
        "ValueHistograms": {
            name: getattr(histograms, name)
            for name in ("counts", "low", "high", "languages", "widths", "n_measured", "metadata")
        },
        "ValueHistograms.save": {"self": histograms, "path": folder / "again.safetensors"},
        "ValueHistograms.load": {"path": folder / "histograms.safetensors"},
        "ablation_hooks": {"model": model, "mask": mask[0]},
        "ablation_study": {"sharing_or_masks": sharing, "types": ["all-shared"], **study},
        "activation_rates": {"model": model, "texts": texts, **quiet},
        "answer_languages": {"model": model, "prompts": texts, "max_new_tokens": 1, **quiet},
        "attribute": {"model": model, "prompts": prompts, "sharing": sharing, **few},
        "categorise": {"model": model, "prompts": prompts, **quiet},
        "categorise_caches": {"caches": caches},
        "correctness_impact": {"post": post, "W_out": torch.ones(widths[0], 3), "unembedding": torch.ones(2, 3)},
        "cross_ablation": {
            "model": model,
            "texts": texts,
            "masks": masks,
            "controls": ["random"],
            "seeds": [0],
            **few,
        },
        "describe_neurons": {"model": model, "neurons": [(0, 1)], **quiet},
        "dose_response": {"sharing": sharing, "type": "all-shared", "shares": [0.5], **study},
        "evaluate": {"model": model, "prompts": prompts, **quiet},
        "facts_of": {"prompts": prompts},
        "generation_impact": {"post": post, "W_out": torch.ones(widths[0], 3)},
        "input_overlap": {"results": {"one": sharing, "two": sharing}},
        "language_overlap": {"sharing": sharing, "n_resamples": 3, "mismatches": 1},
        "load_lape_neurons": {"path": folder / "lape.pth", "d_mlp": 4, "languages": ["en"]},
        "load_masks": {"path": folder / "masks.safetensors"},
        "load_model": {"name_or_path": ns.demo.DIRECTORY, "backend": "bridge", "device": "cpu", "verify": False},
        "magnitude_matched_like": {
            "mask": mask,
            "impact": torch.rand(mask.shape),
            "generator": torch.Generator().manual_seed(0),
        },
        "mask_from_frame": {"frame": ns.mask_to_frame(mask[0]), "n_layers": n_layers, "d_mlp": widths[0]},
        "mask_to_frame": {"mask": mask[0]},
        "neuron_types": {"activated": sharing.activated()},
        "overlap_ladder": {"sharing": sharing, "facts": ns.facts_of(prompts)},
        "page": {"path": folder / "page.html", "results": (sharing,)},
        "permutation_test": {"sharing": pairs, "similarity": similarity, "n_permutations": 3},
        "perplexity": {"model": model, "texts": texts, **quiet},
        "random_like": {"mask": mask, "generator": torch.Generator().manual_seed(0)},
        "reference_values": {"model": model, "prompts": prompts, **quiet},
        "same_family": {"languages": ["en", "de"]},
        "same_script": {"languages": ["en", "de"]},
        "save_masks": {"masks": masks, "path": folder / "again.safetensors"},
        "side_by_side": {"results": {1: sharing, 2: sharing}, "name": "step", "mismatches": 1},
        "top_neurons": {"model": model, "prompts": prompts, "sharing": sharing, "n": 3, **quiet},
        "types_along": {"model": model, "prompts": prompts, "before": 1, "after": 1, **quiet},
        "typological_similarity": {"languages": ["en", "de"]},
        "value_histograms": {"model": model, "texts": texts, "n_bins": 4, **quiet},
        "verify": {"model": model},
        "demo.load_model": {"backend": "bridge", "device": "cpu"},
        "demo.prompts": {},
        "methods.agreement": methods,
        "methods.average_precision": {"values": each, "widths": widths, "n": 2},
        "methods.bipartition": {"histograms": histograms},
        "methods.by_number_of_languages": {"masks": masks},
        "methods.lape": {"rates": rates, "share": 0.5},
        "methods.largest_weight": {"rates": rates, "share": 0.5},
        "methods.parallel_detection": {"model": model, "texts": texts, **quiet},
        "methods.sizes": methods,
        "methods.specific_related_general": {"rates": rates, "share": 0.5},
        "methods.steered": {"means": means},
        "methods.steering_hooks": {
            "model": model,
            "means": means,
            "language": next(iter(means)),
            "alpha": 1.0,
            "layers": [0],
        },
        "methods.transfer_neurons": {"model": model, "texts": texts, "direction": "to shared", "n": 2, **quiet},
        "methods.types": {"masks": methods["masks"], "sharing": sharing},
        "plots.ablation": {"table": ns.ablation_study(sharing_or_masks=sharing, types=["all-shared"], **study)},
        "plots.causal_check": {"table": pd.DataFrame([causal])},
        "plots.chance": {"summary": summary},
        "plots.correctness": {"table": attributed},
        "plots.cross_ablation": {"table": cross},
        "plots.dose_response": {"table": dose},
        "plots.impact": {"table": attributed},
        "plots.input_overlap": {"table": ns.input_overlap({"one": sharing, "two": sharing})},
        "plots.language_overlap": {"table": overlap},
        "plots.methods": {
            "sizes": ns.methods.sizes(**methods),
            "agreement": ns.methods.agreement(**methods),
            "types": ns.methods.types(methods["masks"], sharing),
        },
        "plots.never_activated": {"table": sharing.never_activated()},
        "plots.overlap_ladder": {"table": ladder},
        "plots.patterns": {"summary": summary, "by_language": sharing.by_language()},
        "plots.persistence": {"table": sharing.persistence(), "growth": growth},
        "plots.relatedness": {
            "sharing": pairs,
            "similarity": {"family": similarity},
            "family": similarity,
            "tests": {"family": ns.permutation_test(pairs, similarity, n_permutations=3)},
        },
        "plots.side_by_side": {"table": steps},
        "plots.tokens": {"table": steps},
        "plots.top_shares": {"table": attributed},
        "tasks.fact_probing": {"source": folder / "mpararel"},
        "tasks.knowledge_editing": {"source": folder / "mzsre"},
        "tasks.mgsm": {"source": folder / "mgsm"},
        "tasks.table": {"source": folder / "table.csv"},
        "tasks.translation": {"source": folder / "devtest"},
        "tasks.world_facts": {"relations": ["continent"], "languages": ["en", "de"], "limit": 3},
        "tasks.xnli": {"source": folder / "xnli.tsv"},
    }


NAMES = sorted(set(FUNCTIONS) - INTERNAL)
SLOW = {"ablation_study", "dose_response", "evaluate", "perplexity", "reference_values", "types_along"}
SLOW |= {"load_model", "plots.correctness", "plots.impact", "plots.tokens"}  # the first asks a hub for names
# What is not of the call itself, and a function of the user's, which may raise what it likes.
NOT_TRIED = {"self", "progress", "out", "trust_remote_code", "results", "tables"}
# Whatever these are given, they are not read, since what they belong to is not given; or any mapping is meant.
ANYTHING = {("mask_from_frame", "experts"), ("plots.tokens", "example"), ("plots.tokens", "language")}
ANYTHING |= {("ParallelPrompts.with_chat_template", "options"), ("ParallelPrompts.with_chat_template", "system")}


def arguments():
    """Each argument of each public function."""
    for name in NAMES:
        for argument in inspect.signature(FUNCTIONS[name]).parameters:
            if argument not in NOT_TRIED:
                marks = [pytest.mark.slow] if name in SLOW else []
                yield pytest.param(name, argument, id=f"{name}-{argument}", marks=marks)


def refusal_of(call: Callable[[], Any]) -> str | None:
    """What the library says against a call; None if it gives a result."""
    try:
        call()
    except ns.NeuronShareError as error:
        return str(error)
    return None


def test_every_public_function_has_a_call(calls):
    assert set(calls) == set(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SLOW | {"NeuronSharing.experts"}])
def test_the_calls_are_right(calls, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FUNCTIONS[name](**calls[name]) if name != "page" else ns.page("page.html", *calls[name]["results"])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "argument"), list(arguments()))
def test_wrong_values_are_refused(calls, name, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {key: value for key, value in calls[name].items() if key != "results" or name != "page"}
    for what, value in wrong_values().items():
        if what == "a class" and argument in ("fwd_hooks", "mode", "on_run", "condition"):
            continue  # it can be called, and what the user's own function raises stays as it is
        refusal = refusal_of(lambda value=value: FUNCTIONS[name](**{**given, argument: value}))
        assert refusal is not None or what != "an object" or (name, argument) in ANYTHING, what
        assert len(refusal or "") < 2000, what
    plt.close("all")


def test_a_wrong_kind_is_named_and_other_errors_stay(calls):
    with pytest.raises(ns.NeuronShareError, match=r"^language_overlap: sharing=None is not of the kind NeuronSharing;"):
        ns.language_overlap(None)

    def raising(value, hook):
        raise AttributeError("mine")

    hooks = [("blocks.0.hook_resid_pre", raising)]
    with pytest.raises(AttributeError, match="mine"):
        ns.evaluate(**calls["evaluate"], fwd_hooks=hooks)
