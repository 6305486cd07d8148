"""How the house is built: which module may import which, what stays private, and the public names as a contract."""

from __future__ import annotations

import ast
import graphlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch

import tl_neuronshare as ns

PACKAGE = Path(ns.__file__).parent
TESTS = Path(__file__).parent
ROOT = "tl_neuronshare"
# A module imports from its own part of the package and from those before it.
ORDER = [
    "errors", "arguments", "launch", "checks", "prompts", "maths", "results", "models", "running", "evaluation",
    "ablation", "attribution", "methods", "tasks", "plots", "pages", "demo", "cli", "__main__",
]  # fmt: skip
# Of those before them these see less; the commands also see the package's public names, as a user does.
SEES = {
    "maths": {"errors", "arguments", "checks"},
    "tasks": {"errors", "arguments", "launch", "checks", "prompts"},
    "plots": {"errors", "arguments", "checks", "maths", "results"},
    "pages": {"errors", "arguments", "checks", "maths", "results", "plots"},
    "cli": {"", *ORDER[: ORDER.index("cli")]},
}
HEAVY = {"matplotlib", "transformers", "transformer_lens"}


@dataclass
class Module:
    """What a module of the package says of others, found in its text."""

    name: str
    imports: dict[str, int] = field(default_factory=dict)  # modules of the package -> the line
    at_import: set[str] = field(default_factory=set)  # those of them that importing it imports
    heavy: dict[str, int] = field(default_factory=dict)  # packages that importing it imports
    private: list[tuple[str, int]] = field(default_factory=list)  # other modules' private names

    @property
    def part(self) -> str:
        """The folder, or the module at the top."""
        return self.name.split(".")[1] if "." in self.name else ""


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def statements(node: ast.AST, *, at_import: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import, and whether importing the module runs it: in a function, or for type checkers only, it does not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_import
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from statements(child, at_import=at_import and not is_function and not is_for_types)


def read(name: str, text: str) -> Module:
    """A module by its text."""
    module, tree = Module(name), ast.parse(text)
    known: dict[str, str] = {}  # names under which other modules of the package are used
    for statement, at_import in statements(tree):
        given = [alias.name for alias in statement.names]
        start = statement.module or "" if isinstance(statement, ast.ImportFrom) else ""
        assert not getattr(statement, "level", 0), f"{name}, line {statement.lineno}: write imports out in full"
        found = {one: f"{start}.{one}" if f"{start}.{one}" in FILES else start or one for one in given}
        for alias in statement.names:
            target = found[alias.name]
            if target in FILES and target != name:
                module.imports.setdefault(target, statement.lineno)
                module.at_import |= {target} if at_import else set()
                if target != start:
                    known[alias.asname or alias.name] = target
                elif alias.name.startswith("_") and not alias.name.startswith("__"):
                    module.private.append((f"{start}.{alias.name}", statement.lineno))
            elif at_import and target.split(".")[0] in HEAVY:
                module.heavy.setdefault(target.split(".")[0], statement.lineno)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = known.get(ast.unparse(node.value))
            if owner:
                module.private.append((f"{owner}.{node.attr}", node.lineno))
    return module


@cache
def modules() -> dict[str, Module]:
    return {name: read(name, file.read_text(encoding="utf-8")) for name, file in FILES.items()}


def backwards(module: Module) -> list[str]:
    """The module's imports that are against the order."""
    wrong = []
    for target, line in module.imports.items():
        other = target.split(".")[1] if "." in target else ""
        allowed = SEES.get(module.part, set(ORDER[: ORDER.index(module.part)])) | {module.part}
        if other not in allowed:
            wrong.append(f"{module.name}, line {line}, imports {target}")
    return wrong


def test_every_part_of_the_package_has_its_place_in_the_order():
    assert {module.part for module in modules().values() if module.name != ROOT} <= set(ORDER)


def test_no_arrow_runs_back():
    wrong = [found for module in modules().values() if module.name != ROOT for found in backwards(module)]
    assert not wrong, "\n".join(wrong)


def test_no_circle_among_modules():
    """Of what is imported when a module is: a type that only type checkers look up makes no circle."""
    graph = {name: module.at_import for name, module in modules().items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # which raises CycleError, with the circle


def test_private_names_stay_in_their_module():
    wrong = [
        f"{module.name}, line {line}, uses {used}" for module in modules().values() for used, line in module.private
    ]
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_wait_until_they_are_needed():
    """Where they are imported; that importing the package loads none is invariant 9 (test_invariants.py)."""
    loaded, rest = set(), [ROOT]
    while rest:
        name = rest.pop()
        if name not in loaded:
            loaded.add(name)
            parents = [name.rsplit(".", places)[0] for places in range(1, name.count(".") + 1)]
            rest += [*modules()[name].at_import, *parents]
    wrong = [
        f"{module.name}, line {line}, imports {package}"
        for module in modules().values()
        for package, line in module.heavy.items()
        if module.name in loaded or (package == "matplotlib" and module.part not in ("plots", "cli"))
    ]
    assert not wrong, "\n".join(wrong)


def test_what_the_house_forbids_is_found():
    """Each rule on a module that breaks it."""
    text = (
        "from tl_neuronshare.running.plan import _room\nfrom tl_neuronshare import models\nimport matplotlib.figure\n"
        "def later():\n    import transformers\n    return models._hidden, models.forward\n"
    )
    module = read("tl_neuronshare.results.wrong", text)
    assert backwards(module) == [
        "tl_neuronshare.results.wrong, line 1, imports tl_neuronshare.running.plan",
        "tl_neuronshare.results.wrong, line 2, imports tl_neuronshare.models",
    ]
    assert module.private == [("tl_neuronshare.running.plan._room", 1), ("tl_neuronshare.models._hidden", 6)]
    assert module.heavy == {"matplotlib": 3}
    assert backwards(read("tl_neuronshare.tasks.wrong", "from tl_neuronshare.models import hooks"))
    assert not backwards(read("tl_neuronshare.running.right", "from tl_neuronshare.models import hooks"))


def test_no_test_module_imports_a_test_module():
    """What several tests use is in tests/support."""
    wrong = []
    for file in sorted(TESTS.rglob("*.py")):
        for statement, _ in statements(ast.parse(file.read_text(encoding="utf-8"))):
            named = [getattr(statement, "module", None) or "", *(alias.name for alias in statement.names)]
            parts = {part for name in named for part in name.split(".")}
            if any(part.startswith("test_") or part == "conftest" for part in parts):
                wrong.append(f"{file.relative_to(TESTS)}, line {statement.lineno}: {ast.unparse(statement)}")
    assert not wrong, "\n".join(wrong)


# The contract. Whoever adds a public name adds its line; whoever changes a line says so in the changelog.
PUBLIC = {
    # models
    "load_model": "name_or_path, *, backend, device, dtype, verify, trust_remote_code",
    "verify": "model, *, texts, reference",
    # prompts
    "ParallelPrompts": "prompts, answers, choices, name, *, examples, report",
    "ParallelPrompts.from_frame": "frame, *, name",
    "ParallelPrompts.to_frame": "self",
    "ParallelPrompts.from_dataset": "dataset, *, name",
    "ParallelPrompts.select": "self, languages",
    "ParallelPrompts.with_chat_template": "self, tokenizer, *, system, **options",
    "tasks.fact_probing": "source, *, relations, form, pattern, instructions, without_pattern, n_choices, languages, "
    "limit, seed",
    "tasks.knowledge_editing": "source, *, direction, asks, instructions, languages, limit, seed",
    "tasks.mgsm": "source, *, instructions, languages, limit, seed",
    "tasks.table": "source, *, languages, limit, seed",
    "tasks.translation": "source, *, target, template, split, languages, limit, seed",
    "tasks.world_facts": "*, relations, languages, limit, seed, n_choices, ending",
    "tasks.xnli": "source, *, instructions, languages, limit, seed",
    "demo.load_model": "*, backend, device",
    "demo.prompts": "",
    # categorise
    "neuron_types": "activated",
    "types_along": "model, prompts, *, before, after, site, threshold, batch_size, prepend_bos, progress",
    "categorise": "model, prompts, *, site, position, threshold, batch_size, prepend_bos, out, shard, progress",
    "categorise_caches": "caches, *, lengths, padding_side, tokens, prompts, site, position, threshold",
    "SharingRecorder": "model, languages, n_examples, *, site, position, threshold",
    "SharingRecorder.fwd_hooks": "self, language, examples, attention_mask, *, tokens",
    "SharingRecorder.sharing": "self, *, prompts",
    "NeuronSharing.from_activated": "activated, *, languages, widths, hooks, metadata",
    "NeuronSharing.from_values": "values, *, threshold, widths, hooks, metadata",
    "NeuronSharing.concatenate": "results",
    "NeuronSharing.activated": "self, examples, *, language",
    "NeuronSharing.mask": "self, type, *, examples",
    "NeuronSharing.mismatched": "self, *, seed",
    "NeuronSharing.summary": "self, *, mismatches, seed",
    "NeuronSharing.by_language": "self",
    "NeuronSharing.persistence": "self",
    "NeuronSharing.never_activated": "self",
    "NeuronSharing.overlap": "self, layer",
    "NeuronSharing.same_last_token": "self",
    "NeuronSharing.save": "self, path",
    "NeuronSharing.load": "path",
    "NeuronSharing.push_to_hub": "self, repo_id, *, name, private, token",
    "NeuronSharing.from_hub": "repo_id, *, name, revision, token",
    "activation_rates": "model, texts, *, site, threshold, part, batch_size, prepend_bos, out, shard, progress",
    "NeuronRates": "counts, tokens, *, languages, widths, hooks, experts, n_measured, metadata",
    "NeuronRates.select": "self, languages",
    "NeuronRates.by_language": "self",
    "NeuronRates.save": "self, path",
    "NeuronRates.load": "path",
    "value_histograms": "model, texts, *, site, n_bins, part, batch_size, prepend_bos, progress",
    "ValueHistograms": "counts, low, high, *, languages, widths, n_measured, metadata",
    "ValueHistograms.save": "self, path",
    "ValueHistograms.load": "path",
    # methods
    "methods.lape": "rates, *, share, quantile",
    "methods.specific_related_general": "rates, *, share, quantile, weight",
    "methods.largest_weight": "rates, *, share, quantile",
    "methods.by_number_of_languages": "masks",
    "methods.average_precision": "values, *, widths, n, which",
    "methods.bipartition": "histograms, *, share",
    "methods.parallel_detection": "model, texts, *, share, batch_size, prepend_bos, progress",
    "methods.transfer_neurons": "model, texts, *, direction, shared, n, layers, batch_size, prepend_bos, progress",
    "methods.steering_hooks": "model, means, language, *, alpha, layers, beta, gamma, threshold",
    "methods.steered": "means, *, threshold",
    "methods.sizes": "masks, *, is_neuron",
    "methods.agreement": "masks, *, is_neuron",
    "methods.types": "masks, sharing",
    # comparison
    "side_by_side": "results, *, name, mismatches, seed",
    "language_overlap": "sharing, *, mismatches, seed, n_resamples",
    "input_overlap": "results, *, type",
    "facts_of": "prompts",
    "overlap_ladder": "sharing, facts, *, paraphrase, partners, seed",
    "typological_similarity": "languages, *, features",
    "same_family": "languages",
    "same_script": "languages",
    "permutation_test": "sharing, similarity, *, covariates, n_permutations, seed",
    # masks, ablation, evaluation
    "random_like": "mask, *, generator, within",
    "magnitude_matched_like": "mask, impact, *, generator",
    "save_masks": "masks, path",
    "load_masks": "path",
    "load_lape_neurons": "path, *, d_mlp, languages",
    "mask_to_frame": "mask, *, experts",
    "mask_from_frame": "frame, *, n_layers, d_mlp, n_examples, experts",
    "ablation_hooks": "model, mask, *, mode, values, position, prompt_tokens, tokens, site",
    "reference_values": "model, prompts, *, each, position, site, batch_size, prepend_bos, progress",
    "evaluate": "model, prompts, *, scoring, fwd_hooks, length_normalised, max_new_tokens, stop, batch_size, "
    "prepend_bos, out, shard, progress",
    "perplexity": "model, texts, *, fwd_hooks, batch_size, prepend_bos, progress",
    "ablation_study": "model, prompts, sharing_or_masks, *, types, controls, active, spared, mode, values, seeds, "
    "scoring, length_normalised, max_new_tokens, stop, position, skip_special_tokens, site, layers, equal_size, "
    "consistent, one_mask, n_resamples, batch_size, prepend_bos, on_run, out, shard, progress",
    "dose_response": "model, prompts, sharing, *, type, shares, controls, seeds, scoring, length_normalised, "
    "max_new_tokens, stop, n_resamples, batch_size, prepend_bos, out, shard, progress",
    "answer_languages": "model, prompts, *, candidates, fwd_hooks, max_new_tokens, stop, batch_size, prepend_bos, "
    "progress",
    "cross_ablation": "model, texts, masks, *, controls, seeds, mode, values, layers, n_resamples, batch_size, "
    "prepend_bos, out, shard, progress",
    # attribution
    "describe_neurons": "model, neurons, *, sharing, rates, prompts, n_tokens, n_prompts, token_by_token, batch_size, "
    "prepend_bos, progress",
    "page": "path, *results, title, **tables",
    "generation_impact": "post, W_out",
    "correctness_impact": "post, W_out, unembedding",
    "attribute": "model, prompts, sharing, *, top_k, answer, norm, n_resamples, batch_size, prepend_bos, out, shard, "
    "progress",
    "top_neurons": "model, prompts, sharing, *, score, n, top_k, answer, norm, batch_size, prepend_bos, out, shard, "
    "progress",
    # figures
    "plots.patterns": "summary, by_language, *, title",
    "plots.chance": "summary, *, title",
    "plots.side_by_side": "table, *, title",
    "plots.persistence": "table, growth, *, title",
    "plots.never_activated": "table, *, title",
    "plots.language_overlap": "table, *, title",
    "plots.input_overlap": "table, *, title",
    "plots.overlap_ladder": "table, *, title",
    "plots.relatedness": "sharing, similarity, *, family, tests, title",
    "plots.ablation": "table, *, metric, title",
    "plots.cross_ablation": "table, *, title",
    "plots.dose_response": "table, *, title",
    "plots.methods": "sizes, agreement, types, *, title",
    "plots.top_shares": "table, *, title",
    "plots.impact": "table, *, language, title",
    "plots.correctness": "table, *, language, title",
    "plots.causal_check": "table, *, title",
    "plots.tokens": "table, texts, *, example, language, title",
}
NOT_CALLED = {
    "NeuronShareError",
    "NeuronSharing",
    "NeuronType",
    "demo",
    "methods",
    "plots",
    "tasks",
}  # users call none of them


def written(signature: inspect.Signature) -> tuple[list[str], set[str]]:
    """The names that may be given by position, in order, and those that must be given by name."""
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    named = [(marks.get(one.kind, "") + name, one.kind) for name, one in signature.parameters.items()]
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    return [name for name, kind in named if kind not in by_name], {name for name, kind in named if kind in by_name}


def as_written(text: str) -> tuple[list[str], set[str]]:
    names = [name for name in text.split(", ") if name]
    star = next((place for place, name in enumerate(names) if name == "*" or re.match(r"\*\w", name)), len(names))
    return names[: star + (names[star : star + 1] != ["*"])], set(names[star + 1 :])


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names(name):
    thing = ns
    for part in name.split("."):
        thing = getattr(thing, part)
    found, expected = written(inspect.signature(thing)), as_written(PUBLIC[name])
    assert found == expected


def test_every_public_name_is_in_the_table():
    assert set(ns.__all__) - NOT_CALLED == {name for name in PUBLIC if "." not in name}
    for folder in ("demo", "methods", "plots", "tasks"):
        public = {
            name
            for name, thing in vars(getattr(ns, folder)).items()
            if inspect.isfunction(thing)
            and not name.startswith("_")
            and thing.__module__.startswith(f"{ROOT}.{folder}")
        }
        assert public == {name.split(".")[1] for name in PUBLIC if name.startswith(f"{folder}.")}


def test_a_result_says_what_the_contract_says_it_does():
    sharing = ns.NeuronSharing.from_activated(torch.ones(2, 2, 1, 8, dtype=torch.bool), languages=["en", "de"])
    assert (sharing.n_examples, sharing.n_layers, sharing.d_mlp) == (2, 1, 8)
    assert (sharing.languages, sharing.widths, len(sharing.hooks)) == (("en", "de"), (8,), 1)
    assert (sharing.types.shape, len(sharing[:1]), sharing.metadata) == ((2, 1, 8), 1, {})
    labels = [type.label for type in ns.NeuronType]
    assert labels == ["non-activated", "specific", "partial-shared", "all-shared"]
