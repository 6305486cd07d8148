"""The method as the paper writes it, without this package or TransformerLens.

It uses Hugging Face modules, torch hooks and Python sets, and runs one prompt at a time without padding. It is slow and
literal on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

ActiveNeurons = dict[tuple[int, str, int], set[int]]  # (example, language, layer) -> neurons
Scores = dict[tuple[int, str, int], tuple[list[float], list[float]]]  # the same -> what each neuron writes, and pushes
TYPES = ("all-shared", "partial-shared", "specific", "non-activated")


def active_neurons(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: dict[str, list[str]],
    *,
    module: str,
    n_layers: int,
    bos: bool,
    of_output: bool = False,
    threshold: float = 0.0,
    position: str | int = "last",
) -> ActiveNeurons:
    """Return the neurons above the threshold at a position, read at the input or output of a module of each layer."""
    active: ActiveNeurons = {}
    for language, texts in prompts.items():
        for example, text in enumerate(texts):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if bos:
                ids = [tokenizer.bos_token_id, *ids]
            seen: dict[int, torch.Tensor] = {}
            handles = []
            for layer in range(n_layers):

                def read(_module, inputs, output, layer=layer, seen=seen):
                    seen[layer] = output if of_output else inputs[0]

                handles.append(model.get_submodule(module.format(layer)).register_forward_hook(read))
            with torch.no_grad():
                model(torch.tensor([ids]))
            for handle in handles:
                handle.remove()
            for layer in range(n_layers):
                width = seen[layer].shape[-1]
                of_tokens = seen[layer].reshape(-1, width).tolist()  # OPT flattens prompts and tokens into one axis
                above = [{neuron for neuron in range(width) if row[neuron] > threshold} for row in of_tokens]
                active[example, language, layer] = at(position, above, ids, tokenizer.all_special_ids)
    return active


def at(position: str | int, above: list[set[int]], ids: list[int], special: list[int]) -> set[int]:
    """Return the neurons that are above the threshold at one token, or at any or all of the plain tokens."""
    plain = [neurons for neurons, token in zip(above, ids, strict=True) if token not in special]
    if position == "any":
        return set.union(*plain)
    if position == "all":
        return set.intersection(*plain)
    return above[-1 if position == "last" else position]


def types(active: ActiveNeurons, example: int, layer: int, languages: list[str], width: int) -> dict[str, set[int]]:
    """Return the neurons of each of the four types, of one layer and for one example."""
    found: dict[str, set[int]] = {
        "non-activated": set(),
        "specific": set(),
        "partial-shared": set(),
        "all-shared": set(),
    }
    for neuron in range(width):
        speakers = {language for language in languages if neuron in active[example, language, layer]}
        if speakers == set(languages):
            found["all-shared"].add(neuron)
        elif len(speakers) > 1:
            found["partial-shared"].add(neuron)
        elif len(speakers) == 1:
            found["specific"].add(neuron)
        else:
            found["non-activated"].add(neuron)
    return found


@contextmanager
def edited(
    model: nn.Module, *, module: str, edits: dict[int, Callable[[torch.Tensor], torch.Tensor]]
) -> Iterator[None]:
    """Edit the input of a Hugging Face module in some layers, with plain torch, for as long as the context lasts."""
    handles = [
        model.get_submodule(module.format(layer)).register_forward_pre_hook(
            lambda _, inputs, edit=edit: (edit(inputs[0]),)
        )
        for layer, edit in edits.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def zeroed(model: nn.Module, *, module: str, mask: torch.Tensor) -> Any:
    """Set the masked neurons of each layer to zero at every token, for as long as the context lasts."""
    edits = {
        layer: lambda values, neurons=neurons: values * (~neurons).to(values.dtype)
        for layer, neurons in enumerate(mask)
    }
    return edited(model, module=module, edits=edits)


def log_prob(model: nn.Module, before: list[int], scored: list[int]) -> float:
    """Return the log-probability of tokens after others: one unpadded sequence, token by token."""
    with torch.no_grad():
        logits = model(torch.tensor([before + scored])).logits[0].double().log_softmax(-1)
    return sum(logits[len(before) - 1 + place, token].item() for place, token in enumerate(scored))


def greedy(model: nn.Module, tokens: list[int], n_new: int) -> list[int]:
    """Decode `n_new` tokens, each the most probable one, and run the whole text again for each."""
    for _ in range(n_new):
        with torch.no_grad():
            tokens = [*tokens, int(model(torch.tensor([tokens])).logits[0, -1].argmax())]
    return tokens


def scores(
    model: nn.Module,
    tokens: list[int],
    position: int,
    token: int,
    *,
    down: str,
    n_layers: int,
    direction: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda unembedding, residual: unembedding,
    norm: str = "",
) -> dict[int, tuple[list[float], list[float]]]:
    """Return |m| |v| and m (v . E[token]) of every neuron of each layer at a position, one neuron at a time.

    `direction` replaces E[token]; it also takes the input of the module `norm`.
    """
    seen: dict[str, torch.Tensor] = {}
    names = [down.format(layer) for layer in range(n_layers)] + ([norm] if norm else [])
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0].reshape(-1, inputs[0].shape[-1])[position]})
        )
        for name in names
    ]
    with torch.no_grad():
        model(torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    unembedding = direction(model.get_output_embeddings().weight[token].detach(), seen.get(norm))
    found = {}
    for layer in range(n_layers):
        module = model.get_submodule(down.format(layer))
        is_linear = isinstance(module, nn.Linear)  # GPT-2's Conv1D keeps its weight transposed
        rows = (module.weight.T if is_linear else module.weight).detach()
        wrote, pushed = [], []
        for neuron, m in enumerate(seen[down.format(layer)].tolist()):
            wrote.append(abs(m) * rows[neuron].double().norm().item())
            pushed.append(m * float(rows[neuron].double() @ unembedding.double()))
        found[layer] = wrote, pushed
    return found


def literal_start(
    tokenizer: PreTrainedTokenizerBase, prompt: str, texts: list[str], bos: bool
) -> tuple[int, list[list[int]], int]:
    """Return, by definition, where scoring begins, each text's tokens, and how many tokens the prompt has."""

    def ids(text):
        return [tokenizer.bos_token_id] * bos + tokenizer(text, add_special_tokens=False)["input_ids"]

    alone, whole = ids(prompt), [ids(prompt + text) for text in texts]
    start = min(next(i for i in range(len(w) + 1) if i >= len(alone) or w[: i + 1] != alone[: i + 1]) for w in whole)
    return start, whole, len(alone)


def gradient(hugging_face: nn.Module, norm: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return a `direction` for `scores`: the gradient of (the final norm's output) . E, by autograd."""
    module = hugging_face.get_submodule(norm)

    def direction(unembedding, residual):
        residual = residual.detach().clone().requires_grad_()
        return torch.autograd.grad(module(residual) @ unembedding, residual)[0]

    return direction


def literal_scores(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    kind: Any,
    prompts: Any,
    answer: str = "first",
    norm: str = "none",
) -> Scores:
    """Return each neuron's two scores, as means over the answer's tokens."""
    options = {"direction": gradient(model, kind.norm), "norm": kind.norm} if norm == "full" else {}
    found = {}
    for language, example in product(prompts.languages, range(len(prompts))):
        text, gold = prompts.prompts[language][example], prompts.answers[language][example]
        start, (tokens,), _ = literal_start(tokenizer, text, [gold], kind.bos)
        places = range(start, len(tokens) if answer == "all" else start + 1)
        of_tokens = [
            scores(model, tokens[:place], -1, tokens[place], down=kind.down, n_layers=kind.n_layers, **options)
            for place in places
        ]
        for layer in range(kind.n_layers):
            wrote, pushed = (np.mean([of_token[layer][which] for of_token in of_tokens], axis=0) for which in (0, 1))
            found[example, language, layer] = wrote.tolist(), pushed.tolist()
    return found


def direct_losses(
    model: nn.Module,
    tokens: list[int],
    token: int,
    *,
    down: str,
    norm: str,
    after: str | None,
    factor: float = 1.0,
    is_frozen: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a token's logit loses when each neuron of a layer alone is zeroed, and how much each one adds.

    Nothing but the layer's own output changes: later layers stay as they are. The RMSNorms `after` the MLP and before
    the unembedding keep their scale; or else each loss is the neuron's value times the logit's gradient.
    """
    seen: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0].reshape(-1, inputs[0].shape[-1])[-1]})
        )
        for name in (down, norm)
    ]
    with torch.no_grad():
        model(torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    values, residual = seen[down].detach().requires_grad_(), seen[norm].detach()
    linear, last = model.get_submodule(down), model.get_submodule(norm)
    between = model.get_submodule(after) if after else None

    def through(module: nn.Module | None, vectors: torch.Tensor, scale_of: torch.Tensor) -> torch.Tensor:
        if module is None:
            return vectors
        eps = getattr(module, "eps", None) or module.variance_epsilon
        scale = [(each.square().mean(-1, keepdim=True) + eps).sqrt() for each in (vectors, scale_of)]
        return module(vectors) * scale[0] / scale[1] if is_frozen else module(vectors)

    one_less = torch.cat([values[None], values * (1 - torch.eye(len(values), dtype=values.dtype))])
    written = linear(one_less)
    added = factor * through(between, written, written[:1])
    logits = (
        through(last, residual + added - added[:1].detach(), residual) @ model.get_output_embeddings().weight[token]
    )
    lengths = (added[0] - added[1:]).norm(dim=-1).detach()
    if is_frozen:
        return (logits[0] - logits[1:]).detach(), lengths
    (gradient,) = torch.autograd.grad(logits[0], values)
    return (values * gradient).detach(), lengths


def literal_table(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, kind: Any, prompts: Any, scores: Scores
) -> dict[tuple[Any, ...], float]:
    """Return every statistic of the scores, computed with sets and loops."""
    n_layers = kind.n_layers
    active = active_neurons(model, tokenizer, prompts.prompts, module=kind.down, n_layers=n_layers, bos=kind.bos)
    languages = list(prompts.languages)
    of_type, top = {}, {}
    for example, layer in product(range(len(prompts)), range(n_layers)):
        width = len(scores[example, languages[0], layer][0])
        of_type[example, layer] = types(active, example, layer, languages, width)
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
            with_neurons = [row[which] for row in rows if row[which]]
            for statistic, function in {"mean": np.mean, "max": max, "min": min}.items():
                table[(*key, score, statistic)] = np.mean([function(row) for row in with_neurons] or [np.nan])
            table[(*key, score, "sum")] = np.mean([sum(row[which]) for row in rows])
        for place, sign in ((1, "positive"), (2, "absolute")):
            parts = [share[place] for share in shares]
            table[(*key, "correctness", f"mean_{sign}_share")] = 100 * np.mean([part / whole for part, whole in parts])
            pooled = sum(part for part, _ in parts) / sum(whole for _, whole in parts)
            table[(*key, "correctness", f"pooled_{sign}_share")] = 100 * pooled
    return table
