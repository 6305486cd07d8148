"""Judge what this package does with one model, by the literal reading of the Hugging Face model (literal.py).

A column holds one of VERDICTS, or a dash where there is nothing to judge. What was found stands in the notes.
"""

from __future__ import annotations

import re
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer

import tl_neuronshare as ns
from support import literal
from support.architectures import Architecture, make, reads_both_ways
from support.prompts import QUIZ
from support.reference import literal_start

RIGHT, REFUSED, MISLEADING = "right", "refused with the reason", "refused, misleading"
RAW, WRONG, NO_BOOT, UNKNOWN = "raw error", "silently wrong", "does not boot", "not judged"
VERDICTS = (RIGHT, REFUSED, MISLEADING, RAW, WRONG, NO_BOOT, UNKNOWN)  # a row is as good as its worst column
COLUMNS = ("post", "gate", "up", "ablation", "attribution", "decoding")
FIELDS = ("case", "backend", "architecture", "model_type", "verdict", "boots", "verified", *COLUMNS, "notes")
NONE = "–"
_N_NEW = 4


@dataclass
class Facts:
    """What is true of the model, whatever the package says."""

    reads_text: bool
    is_encoder: bool  # or has one
    has_decoder: bool
    layers: list[literal.Block]
    repeats: bool = False  # a part runs more than once in a forward pass
    logits_differ: bool | None = None  # TransformerLens's from Hugging Face's; None where they cannot be compared
    runs: bool | None = None  # TransformerLens's forward pass
    gated: bool | None = None
    head_is_apart: bool = False  # the unembedding reads vectors of another size than the MLPs write

    @property
    def has_experts(self) -> bool:
        return any(isinstance(part, literal.Experts) for block in self.layers for part in block.parts)


# What a message says, and whether it is true. A message that none of these knows is judged misleading, until a person
# has read it and added it here.
REASONS: tuple[tuple[str, Callable[[Facts], bool | None]], ...] = (
    ("mixture of experts", lambda facts: facts.has_experts),
    ("not a decoder-only language model", lambda facts: facts.is_encoder),
    ("is an encoder|is an encoder-decoder", lambda facts: facts.is_encoder),
    ("does the model pad texts by itself", lambda facts: facts.is_encoder),
    ("depends on the tokens after it", lambda facts: facts.is_encoder),
    ("has no MLP", lambda facts: not facts.layers),
    ("fails the check 'logits'", lambda facts: facts.logits_differ is not False),
    ("different from the Hugging Face model", lambda facts: facts.logits_differ is not False),
    ("makes of .* is a different model", lambda facts: facts.logits_differ is not False),
    ("fails the check", lambda facts: True),  # numbers, which verify has taken from the model itself
    ("times in a forward pass", lambda facts: facts.repeats),
    ("stopped with", lambda facts: facts.runs is False),
    ("The shared expert of .* has no hook for", lambda facts: facts.has_experts and facts.gated),
    ("has no gate|have no gate", lambda facts: facts.gated is False),
    ("does not keep its layers in model.blocks", lambda facts: True),
    ("has a gate, but no hook for it", lambda facts: facts.gated),
    ("The gate of the experts of .* cannot be read", lambda facts: facts.has_experts and facts.gated),
    ("does not say what its activation function is", lambda facts: facts.gated),
    ("its unembedding reads", lambda facts: facts.head_is_apart),
    ("is not gated", lambda facts: facts.gated is False),
    ("reads no text|and no text|not a language model", lambda facts: not facts.reads_text),
)


def reason(message: str, facts: Facts) -> str:
    """Judge a refusal by its message."""
    known = [is_true(facts) for pattern, is_true in REASONS if re.search(pattern, message)]
    return REFUSED if known and known[0] else MISLEADING


@dataclass
class Row:
    """What was found for one model."""

    case: Architecture
    directory: Path
    backend: str
    facts: Facts | None = None
    found: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns without which a model is not right: encoders predict no next token."""
        if self.facts is None or not self.facts.is_encoder:
            return ("post", "ablation", "attribution", "decoding")
        return ("post", "ablation", "decoding") if self.facts.has_decoder else ("post", "ablation")

    def plain(self, message: str) -> str:
        """A message in one line, without the folder that differs from run to run."""
        return " ".join(message.replace(str(self.directory), "DIRECTORY").split())[:300]

    def refused(self, column: str, error: Exception) -> None:
        """Note an error out of the package."""
        if isinstance(error, literal.NoReferenceError):
            self.found[column] = UNKNOWN
            self.notes.append(f"{column}: no reference: {error}")
            return
        if isinstance(error, ns.NeuronShareError):
            assert self.facts is not None
            self.found[column] = reason(str(error), self.facts)
            said = str(error)
        else:
            self.found[column] = RAW
            said = f"{type(error).__name__}: {error}"
        note = self.plain(said)
        if not any(note in other for other in self.notes):
            self.notes.append(f"{column}: {note}")

    def judge(self, column: str, wrong: str) -> None:
        """Note that a column is right, or what is wrong with it."""
        self.found[column] = WRONG if wrong else RIGHT
        if wrong:
            self.notes.append(f"{column}: {wrong}")

    def as_dict(self) -> dict[str, str]:
        """The row of the results file."""
        judged = [self.found[column] for column in COLUMNS if self.found.get(column, NONE) != NONE]
        verdict = self.found.get("verdict") or (max(judged, key=VERDICTS.index) if judged else UNKNOWN)
        if verdict == REFUSED and all(self.found.get(column) == RIGHT for column in self.needed):
            verdict = RIGHT
        if UNKNOWN in judged and max((VERDICTS.index(one) for one in judged if one != UNKNOWN), default=0) >= 2:
            verdict = max((one for one in judged if one != UNKNOWN), key=VERDICTS.index)
        return {
            "case": self.case.name,
            "backend": self.backend,
            "architecture": self.case.architecture,
            "model_type": self.case.model_type,
            "verdict": verdict,
            "boots": self.found.get("boots", NONE),
            "verified": self.found.get("verified", NONE),
            **{column: self.found.get(column, NONE) for column in COLUMNS},
            "notes": " | ".join(self.notes),
        }


@contextmanager
def nothing_installed() -> Iterator[None]:
    """Refuse to start an installer: TransformerLens runs `pip install torchvision` where it loads a vision model.

    In the environment of whoever judges, that would replace torch.
    """
    start = subprocess.Popen.__init__

    def refuse(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        if "install" in args:
            raise OSError(f"{args} would change this environment")
        start(self, args, *rest, **options)

    subprocess.Popen.__init__ = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = start  # type: ignore[method-assign]


def judge(case: Architecture, directory: Path, backend: str) -> dict[str, str]:
    """Make the model, do everything that a user does with it, and compare each result with the literal reading."""
    with nothing_installed():
        return _judge(case, directory, backend)


def _judge(case: Architecture, directory: Path, backend: str) -> dict[str, str]:
    row = Row(case, directory, backend)
    if not case.model_type:
        row.found |= {"verdict": UNKNOWN, "boots": "not tried"}
        row.notes.append("Transformers has no such class: it needs code from the hub")
        return row.as_dict()
    try:
        if not (directory / "config.json").exists():
            make(case, directory)
        reference = Reference(case, directory)
    except Exception as error:
        row.found |= {"verdict": UNKNOWN, "boots": "not tried"}
        row.notes.append(f"no tiny model can be made: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return row.as_dict()
    row.facts = reference.facts
    model = _loaded(row, reference)
    if model is not None:
        reference.compare_logits(model)
        _verified(row, model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sharing = _types(row, model, reference)
            _ablation(row, model, reference)
            _attribution(row, model, reference, sharing)
            _decoding(row, model, reference)
            _doubt(row, reference)
    return row.as_dict()


def _loaded(row: Row, reference: Reference) -> Any:
    """Load the model as a user does."""
    try:
        model: Any = ns.load_model(row.directory, backend=row.backend, device="cpu")
    except ns.NeuronShareError as error:
        row.notes.append(f"load_model: {row.plain(str(error))}")
        try:
            unverified = _booted(row)
        except Exception:
            row.found |= {"boots": "no", "verdict": NO_BOOT}
        else:  # TransformerLens loads it, and this package does not accept it
            reference.compare_logits(unverified)
            row.found |= {"boots": "yes", "verdict": reason(str(error), reference.facts)}
        return None
    except Exception as error:
        row.found["boots"] = "no"
        row.refused("verdict", error)
        return None
    row.found["boots"] = "yes"
    return model


def _booted(row: Row) -> Any:
    """Load the model without this package's checks; a bridge without this package."""
    if row.backend == "hooked":
        return ns.load_model(row.directory, backend="hooked", device="cpu", verify=False)
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(row.directory), device="cpu", dtype=torch.float32)


def _verified(row: Row, model: Any) -> None:
    """Note which checks of `verify` fail."""
    try:
        table = ns.verify(model)
    except ns.NeuronShareError:
        row.found["verified"] = "refused"
    except Exception as error:
        row.refused("verified", error)
    else:
        failed = list(table["check"][table["passed"].eq(False).fillna(False)])
        row.found["verified"] = f"not {', '.join(failed)}" if failed else "yes"


class Reference:
    """The Hugging Face model, freshly loaded, run with one unpadded prompt at a time."""

    def __init__(self, case: Architecture, directory: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(directory) if case.tokens else None
        model_class = getattr(transformers, case.class_name or case.architecture)
        given = {"dtype": torch.float32, "attn_implementation": "eager"}
        try:
            self.model = model_class.from_pretrained(directory, experts_implementation="eager", **given).eval()
        except (ValueError, TypeError):  # it has no experts
            self.model = model_class.from_pretrained(directory, **given).eval()
        config = self.model.config
        self.has_source = bool(getattr(config, "is_encoder_decoder", False))
        is_encoder = reads_both_ways(self.model) and not self.has_source
        self.facts = Facts(case.tokens, reads_both_ways(self.model), not is_encoder, literal.blocks(self.model))
        self.start = getattr(config, "decoder_start_token_id", None) or 0
        if case.tokens:
            self._look()

    def _look(self) -> None:
        """Find what is true of the model itself; Hugging Face's own forward pass must run."""
        ids = self.ids(QUIZ.prompts["en"][0])
        self.logits(ids, [])
        head = self.model.get_output_embeddings()
        sizes = {part.W_out.shape[1] for block in self.facts.layers for part in block.parts}
        self.facts.head_is_apart = head is not None and bool(sizes) and head.weight.shape[1] not in sizes
        try:
            reads = self.read(ids)
        except literal.NoReferenceError as error:
            self.facts.repeats = "times in a forward pass" in str(error)
        else:
            known = [one.gate is not None if one.is_known else None for parts in reads for one in parts]
            self.facts.gated = True if True in known else None if None in known else False

    @property
    def widths(self) -> list[int]:
        return [literal.width(block) for block in self.facts.layers]

    @property
    def is_encoder(self) -> bool:
        """Whether no token predicts the next one."""
        return not self.facts.has_decoder

    @property
    def options(self) -> dict[str, Any]:
        """What every function of the package is given; an encoder's tokenizer adds special tokens by itself."""
        return {"progress": False} | ({} if self.facts.is_encoder else {"prepend_bos": True})

    @property
    def position(self) -> str | int:
        """The same for the package."""
        return -2 if self.is_encoder else "last"

    @property
    def place(self) -> int:
        """Which token is read; an encoder's last one is the same for all texts."""
        return -2 if self.is_encoder else -1

    def ids(self, text: str) -> list[int]:
        """The tokens of a prompt."""
        if self.facts.is_encoder:
            return self.tokenizer(text)["input_ids"]
        return [self.tokenizer.bos_token_id, *self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def answered(self, language: str, example: int, choices: list[str]) -> tuple[list[int], list[int]]:
        """The tokens before the right answer, and the answer's tokens from the first that tells choices apart."""
        text, answer = QUIZ.prompts[language][example], QUIZ.answers[language][example]
        if self.has_source:
            return self.ids(text), self.tokenizer(answer.lstrip(), add_special_tokens=False)["input_ids"]
        start, wholes, _ = literal_start(self.tokenizer, text, choices, True)
        whole = wholes[choices.index(answer)]
        return whole[:start], whole[start:]

    def logits(self, ids: list[int], answer: list[int]) -> Tensor:
        """The logits [token, vocabulary] from the prompt's last token on; of an encoder, those of all tokens."""
        given: dict[str, Any] = {"input_ids": torch.tensor([ids if self.has_source else ids + answer])}
        if self.facts.is_encoder:  # some would make a mask of their own, without the tokens that are also the padding
            given["attention_mask"] = torch.ones_like(given["input_ids"])
        if self.has_source:
            given["decoder_input_ids"] = torch.tensor([[self.start, *answer]])
        if not self.is_encoder:
            given["use_cache"] = False
        with torch.no_grad():
            logits = self.model(**given).logits[0]
        return logits if self.is_encoder or self.has_source else logits[len(ids) - 1 :]

    def through(self, model: Any, ids: list[int]) -> Tensor:
        """The same through TransformerLens, without an answer."""
        tokens = torch.tensor([ids])
        given = {"attention_mask": torch.ones_like(tokens)} if self.facts.is_encoder else {}
        if self.has_source:
            given["decoder_input"] = torch.tensor([[self.start]])
        with torch.no_grad():
            logits = model(tokens, **given)[0]
        return logits if self.is_encoder or self.has_source else logits[-1:]

    def read(self, ids: list[int]) -> list[list[literal.Read]]:
        """What the neurons do."""
        return literal.read(self.facts.layers, lambda: self.logits(ids, []))[1]

    def compare_logits(self, model: Any) -> None:
        """Find whether TransformerLens computes the same as Hugging Face."""
        if not self.facts.reads_text:
            return
        ids = self.ids(QUIZ.prompts["en"][0])
        try:
            found = self.through(model, ids)
        except Exception:
            self.facts.runs = False
        else:
            self.facts.runs = True
            self.facts.logits_differ = bool(_off(found, self.logits(ids, [])) > 1e-4)


def _off(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    if found.shape != expected.shape:
        return torch.inf
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def _types(row: Row, model: Any, reference: Reference) -> Any:
    """Compare the activated neurons at each site; return the result at `post`."""
    kept = None
    for site in ("post", "gate", "up"):
        if site != "post" and reference.facts.gated is False:
            try:
                ns.categorise(model, QUIZ, site=site, position=reference.position, **reference.options)
            except ns.NeuronShareError as error:
                row.found[site] = NONE if reason(str(error), reference.facts) == REFUSED else MISLEADING
                if row.found[site] != NONE:
                    row.refused(site, error)
            except Exception as error:
                row.refused(site, error)
            continue
        try:
            sharing = ns.categorise(model, QUIZ, site=site, position=reference.position, **reference.options)
        except Exception as error:
            row.refused(site, error)
            continue
        kept = sharing if site == "post" else kept
        try:
            row.judge(site, _compare_types(sharing, reference, site))
        except Exception as error:
            row.refused(site, error if isinstance(error, literal.NoReferenceError) else _no_reference(error))
    return kept


def _doubt(row: Row, reference: Reference) -> None:
    """Look again at types that a check refuses: where they are right without the check, its message is not."""
    if not any(re.match("post: .*fails the check '(post|edit)", note) for note in row.notes):
        return
    try:
        model = ns.load_model(row.directory, backend=row.backend, device="cpu", verify=False)
        sharing = ns.categorise(model, QUIZ, position=reference.position, **reference.options)
        wrong = _compare_types(sharing, reference, "post")
    except Exception:
        return
    if not wrong:
        row.found["post"] = MISLEADING
        row.notes.append("post: right with verify=False")


def _no_reference(error: Exception) -> literal.NoReferenceError:
    return literal.NoReferenceError(f"{type(error).__name__}: {' '.join(str(error).split())[:150]}")


def _compare_types(sharing: Any, reference: Reference, site: str) -> str:
    """Return what is wrong with the activated neurons, or nothing."""
    if list(sharing.widths) != reference.widths:
        return f"layers of {list(sharing.widths)} neurons, not {reference.widths}"
    if not reference.widths:
        raise literal.NoReferenceError("the literal reading finds no MLP")
    differ = total = 0
    for language, texts in QUIZ.prompts.items():
        activated = sharing.activated(language=language)[:, 0]
        for example, text in enumerate(texts):
            reads = reference.read(reference.ids(text))
            for layer, parts in enumerate(reads):
                values = torch.cat([_at_site(one, site)[reference.place] for one in parts])
                sure = values.abs() > 1e-5 * values.abs().max()
                sure |= values == 0
                found = activated[example, layer, : len(values)]
                differ += int(((found != (values > 0)) & sure).sum())
                total += int(sure.sum())
    return f"{differ} of {total} activations differ" if differ else ""


def _at_site(read: literal.Read, site: str) -> Tensor:
    if not read.is_known and site != "post":
        raise literal.NoReferenceError("the branches of the gate are not known")
    values = getattr(read, site)
    if values is None and site == "gate":
        values = read.post  # an MLP without a gate beside gated ones
    if values is None:
        raise literal.NoReferenceError(f"there is no {site}")
    return values


def _mask(widths: list[int]) -> Tensor:
    mask = torch.rand(len(widths), max(widths), generator=torch.Generator().manual_seed(2)) < 0.3
    for layer, width in enumerate(widths):
        mask[layer, width:] = False
    return mask


def _ablation(row: Row, model: Any, reference: Reference) -> None:
    """Compare logits, and the probabilities of answers on padded batches, with three in ten neurons set to zero."""
    table = None
    try:
        widths = reference.widths or [1]
        mask = _mask(widths)
        hooks = ns.ablation_hooks(model, mask, mode="zero", position="all")
        if not reference.is_encoder:
            table = ns.evaluate(model, QUIZ, fwd_hooks=hooks, **reference.options)
    except Exception as error:
        if "The mask has shape" in str(error):
            row.judge("ablation", f"other neurons than the {reference.widths} of the reference")
        else:
            row.refused("ablation", error)
        return
    ids = reference.ids(QUIZ.prompts["de"][0])
    masks = [mask[layer, :width] for layer, width in enumerate(widths)]
    wrong = []
    try:
        with model.hooks(fwd_hooks=hooks):
            found = reference.through(model, ids)
        plain = reference.logits(ids, [])
        with literal.zeroed(reference.facts.layers, masks):
            expected = reference.logits(ids, [])
            off = 0.0 if table is None else max(_off_log_prob(reference, one) for one in table.itertuples())
    except Exception as error:
        row.refused("ablation", error if isinstance(error, literal.NoReferenceError) else _no_reference(error))
        return
    if _off(expected, plain) < 1e-3:
        wrong.append("the mask has no effect in the reference")
    if _off(found, expected) > 1e-4:
        wrong.append(f"logits are off by {_off(found, expected):.2g}, of an effect of {_off(expected, plain):.2g}")
    if off > 1e-3:
        wrong.append(f"log-probabilities of answers are off by {off:.2g}")
    row.judge("ablation", "; ".join(wrong))


def _off_log_prob(reference: Reference, found: Any) -> float:
    """How far a row of `evaluate` is from the reference, relative to what it is."""
    choices = QUIZ.choices[found.language][found.example]
    before, answer = reference.answered(found.language, found.example, choices)
    log_probs = reference.logits(before, answer[:-1]).double().log_softmax(-1)
    expected = sum(float(log_probs[place, token]) for place, token in enumerate(answer))
    return abs(found.log_prob - expected) / max(1, abs(expected))


def _attribution(row: Row, model: Any, reference: Reference, sharing: Any) -> None:
    """Compare both scores of every neuron with a positive one, and whether there is a warning where there must be."""
    tables = {}
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if sharing is None:
                sharing = ns.categorise(model, QUIZ, **reference.options)
            ns.attribute(model, QUIZ, sharing, **reference.options)
            for score in ("generation", "correctness"):
                tables[score] = ns.top_neurons(
                    model, QUIZ, sharing, score=score, n=None, top_k=1.0, **reference.options
                )
    except Exception as error:
        row.refused("attribution", error)
        return
    warned = any("MLP" in str(one.message) for one in caught)
    try:
        wrong = _compare_scores(tables, reference)
        run = lambda: reference.logits(reference.ids(QUIZ.prompts["de"][0]), [])  # noqa: E731
        is_known = any(formula is not None for formula in _added_through(reference))
        if not warned and not is_known and not literal.writes_unchanged(reference.model, reference.facts.layers, run):
            wrong = "; ".join([*([wrong] if wrong else []), "no warning, though something follows the MLPs"])
    except Exception as error:
        row.refused("attribution", error if isinstance(error, literal.NoReferenceError) else _no_reference(error))
        return
    row.judge("attribution", wrong)


def _added_through(reference: Reference) -> list[Any]:
    """For each layer what follows its MLP, as a function of rows and of the whole output; None where it is unknown."""
    factor = getattr(reference.model.config, "residual_multiplier", 1.0)
    layers = getattr(getattr(reference.model, "model", None), "layers", [None] * len(reference.widths))

    def of(layer: Any) -> Any:
        norm = getattr(layer, "post_feedforward_layernorm", None)
        if norm is None:
            return None if factor == 1.0 else lambda rows, output: factor * rows
        eps = getattr(norm, "eps", None) or norm.variance_epsilon
        scale = lambda vectors: (vectors.square().mean(-1, keepdim=True) + eps).sqrt()  # noqa: E731
        return lambda rows, output: norm(rows).detach() * scale(rows) / scale(output)

    return [of(layer) for layer in layers]


def _compare_scores(tables: dict[str, Any], reference: Reference) -> str:
    unembedding = reference.model.get_output_embeddings().weight.detach()
    total = {score: [torch.zeros(width) for width in reference.widths] for score in tables}
    through = _added_through(reference)
    for language, texts in QUIZ.prompts.items():
        for example in range(len(texts)):
            before, answer = reference.answered(language, example, [QUIZ.answers[language][example]])
            for layer, parts in enumerate(reference.read(before)):
                block = reference.facts.layers[layer]
                values = [
                    one.post[-1] * (one.weight if isinstance(one.weight, float) else one.weight[-1]) for one in parts
                ]
                m, rows = torch.cat(values), torch.cat([part.W_out for part in block.parts])
                if through[layer] is not None:
                    rows = through[layer](rows, m @ rows)
                total["generation"][layer] += m.abs() * rows.norm(dim=-1)
                total["correctness"][layer] += m * (rows @ unembedding[answer[0]])
    n_prompts = len(QUIZ) * len(QUIZ.languages)
    for score, table in tables.items():
        if not len(table):
            return f"no neuron has a positive {score} impact"
        for layer, of_layer in table.groupby("layer"):
            expected = total[score][layer] / n_prompts
            found = torch.tensor(of_layer["score"].to_numpy(), dtype=torch.float32)
            neurons = torch.tensor(of_layer["neuron"].to_numpy())
            if _off(found, expected[neurons]) > 1e-4:
                return f"{score} impact of layer {layer} is off by {_off(found, expected[neurons]):.2g}"
    return ""


def _decoding(row: Row, model: Any, reference: Reference) -> None:
    """Compare greedy answers with a loop that runs the whole text for each token."""
    try:
        table = ns.evaluate(model, QUIZ, scoring="exact", max_new_tokens=_N_NEW, stop=(), **reference.options)
    except Exception as error:
        row.refused("decoding", error)
        return
    try:
        differ = [
            (one.language, one.example)
            for one in table.itertuples()
            if one.prediction.strip() != _greedy(reference, QUIZ.prompts[one.language][one.example]).strip()
        ]
    except Exception as error:
        row.refused("decoding", error if isinstance(error, literal.NoReferenceError) else _no_reference(error))
        return
    row.judge("decoding", f"{len(differ)} of {len(table)} answers differ" if differ else "")


def _greedy(reference: Reference, text: str) -> str:
    ids = reference.ids(text)
    new: list[int] = []
    while len(new) < _N_NEW:
        token = int(reference.logits(ids, new)[-1].argmax())
        if token == reference.tokenizer.eos_token_id:
            break
        new.append(token)
    return reference.tokenizer.decode(new)
