"""The method as the paper writes it, without this package or TransformerLens.

Hugging Face modules, torch hooks, one prompt at a time, no padding, and Python sets. Slow and literal on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

ActiveNeurons = dict[tuple[int, str, int], set[int]]  # (example, language, layer) -> neurons


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
    """The neurons above the threshold at a position; read at the input (or output) of a module of each layer."""
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
                of_tokens = seen[layer].reshape(-1, width).tolist()  # OPT gives all tokens as one long list
                above = [{neuron for neuron in range(width) if row[neuron] > threshold} for row in of_tokens]
                active[example, language, layer] = at(position, above, ids, tokenizer.all_special_ids)
    return active


def at(position: str | int, above: list[set[int]], ids: list[int], special: list[int]) -> set[int]:
    """From the neurons above the threshold at each token: those of one token, of some or of every plain token."""
    plain = [neurons for neurons, token in zip(above, ids, strict=True) if token not in special]
    if position == "any":
        return set.union(*plain)
    if position == "all":
        return set.intersection(*plain)
    return above[-1 if position == "last" else position]


def types(active: ActiveNeurons, example: int, layer: int, languages: list[str], width: int) -> dict[str, set[int]]:
    """The four types of one layer's neurons, for one example."""
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
    """What goes into a module of some layers replaced by a function of it: plain torch, on Hugging Face's modules."""
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
    """The masked neurons of each layer set to zero at every token."""
    edits = {
        layer: lambda values, neurons=neurons: values * (~neurons).to(values.dtype)
        for layer, neurons in enumerate(mask)
    }
    return edited(model, module=module, edits=edits)


def log_prob(model: nn.Module, before: list[int], scored: list[int]) -> float:
    """Of tokens after others: one unpadded sequence, token by token."""
    with torch.no_grad():
        logits = model(torch.tensor([before + scored])).logits[0].double().log_softmax(-1)
    return sum(logits[len(before) - 1 + place, token].item() for place, token in enumerate(scored))


def greedy(model: nn.Module, tokens: list[int], n_new: int) -> list[int]:
    """The most probable next token, so many times, the whole text run anew for each."""
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
    """For each layer |m| |v| and m (v . E[token]) of every neuron at a position: one prompt, one neuron at a time.

    `direction` puts something in E[token]'s place, given what goes into the module `norm`.
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
        is_linear = isinstance(module, nn.Linear)  # GPT-2's Conv1D keeps its weight the other way round
        rows = (module.weight.T if is_linear else module.weight).detach()
        wrote, pushed = [], []
        for neuron, m in enumerate(seen[down.format(layer)].tolist()):
            wrote.append(abs(m) * rows[neuron].double().norm().item())
            pushed.append(m * float(rows[neuron].double() @ unembedding.double()))
        found[layer] = wrote, pushed
    return found
