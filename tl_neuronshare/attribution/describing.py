"""Describe single neurons: which tokens they promote, for what they are activated, and how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_neuronshare import models
from tl_neuronshare.ablation.reference import values_at
from tl_neuronshare.arguments import explains
from tl_neuronshare.checks import count, flag, texts_by_language
from tl_neuronshare.errors import NeuronShareError
from tl_neuronshare.launch import warn
from tl_neuronshare.maths.activation import neurons_of
from tl_neuronshare.maths.impact import NormFormula, projected
from tl_neuronshare.models import LensModel, NeuronLayer, verification
from tl_neuronshare.prompts import ParallelPrompts
from tl_neuronshare.results.masks import mask_from_frame
from tl_neuronshare.results.rates import NeuronRates
from tl_neuronshare.results.sharing import NeuronSharing
from tl_neuronshare.results.types import TYPES
from tl_neuronshare.running import provenance
from tl_neuronshare.running.loop import running
from tl_neuronshare.running.plan import Batch, BatchSize, Plan, Running
from tl_neuronshare.running.shards import Record

_CHUNK = 1 << 26  # numbers of the unembedding, or of neurons' pushes, that are in memory at a time
_MOST = 10_000  # neurons; more are hardly meant to be read one by one


@explains
def describe_neurons(
    model: LensModel,
    neurons: Bool[Tensor, "layer neuron"] | pd.DataFrame | Sequence[tuple[int, int]],
    *,
    sharing: NeuronSharing | None = None,
    rates: NeuronRates | None = None,
    prompts: ParallelPrompts | Mapping[str, Sequence[str]] | None = None,
    n_tokens: int = 10,
    n_prompts: int = 3,
    token_by_token: bool = False,
    batch_size: BatchSize = "auto",
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Describe neurons: the tokens that they promote and suppress, their types, rates, and the prompts they fire for.

    Args:
        model: a HookedTransformer or TransformerBridge of a decoder, with raw weights.
        neurons: a mask; a table with the columns layer and neuron, such as that of `top_neurons`; or pairs of a layer
            and a neuron.
        sharing: what `categorise` found, for the types over its examples and, in a mixture of experts, for how often a
            neuron is computed.
        rates: what `activation_rates` found, for the share of each language's tokens that activate a neuron.
        prompts: prompts to run, for those that activate a neuron most, at their last token.
        n_tokens: how many tokens to name.
        n_prompts: how many prompts to name.
        token_by_token: whether to say the neuron's value at each token of these prompts too.
        batch_size: as in `categorise`.
        prepend_bos: as in `categorise`.
        progress: whether to show a progress bar, if the run takes more than two seconds.

    Returns:
        A table with a row for each neuron, in the given order (of a mask: layer by layer). Columns: layer; neuron (in a
        mixture of experts also expert and index); promotes and suppresses (lists of tokens: those whose logits a
        positive value raises and lowers most, through the weight of the final norm). With `sharing`, for each type, the
        number of examples for which the neuron is of that type, and in a mixture routed (percent of prompts for which
        it is computed). With `rates`, for each language `rate LANGUAGE` (percent of tokens). With `prompts`, prompts (a
        list of tuples: language, text, value) and, with `token_by_token`, tokens (for each of these a list of pairs:
        the token's text and the value there, which is None at special tokens). A norm after the MLP has its weight
        applied to what a neuron writes.

    Raises:
        NeuronShareError: there are no neurons, or some that the model does not have; the model fails a check of
            `verify`; `sharing` is of different layers; or `rates` are of different layers or weights.

    Warns:
        UserWarning: the weights are folded or centred; or the model changes what its MLPs write before it adds it, in a
            way that is neither a norm nor a multiplier of the configuration, so that the tokens are those that the
            MLP's output promotes, and not what is added.

    Examples:
        >>> table = describe_neurons(model, [(3, 7)], sharing=sharing, prompts={"en": ["Country code of Peru →"]})
        >>> list(table.columns)[:4], len(table["promotes"][0])
        (['layer', 'neuron', 'promotes', 'suppresses'], 10)
    """
    flag("token_by_token", token_by_token)
    how, n_tokens, n_prompts = (
        Running(batch_size, prepend_bos).on(model),
        count("n_tokens", n_tokens),
        count("n_prompts", n_prompts),
    )
    models.require_architecture(
        model, "decoder", why="What an encoder writes does not reach the unembedding directly. Use a decoder."
    )
    models.check_unembedding(model)
    verification.require(model, "logits", "post", "output", "unembedding")
    layers = models.neuron_layers(model, "post")
    places = _places(neurons, layers)
    table = named(layers, places)
    added = models.added_through(model)
    _warn(model, added)
    promotes, suppresses = _tokens(model, layers, places, n_tokens, added.formulas)
    table["promotes"], table["suppresses"] = promotes, suppresses
    at = tuple(places.T)
    if sharing is not None:
        provenance.require_layers(model, sharing)
        times = sharing.times_of_types()
        for type in TYPES:
            table[type.label] = times[type][at].numpy()
        if sharing.routing is not None:
            table["routed"] = _routed(sharing)[at].numpy()
    if rates is not None:
        _require_same_model(model, rates, layers)
        for language, of_language in zip(rates.languages, 100 * rates.rates, strict=True):
            table[f"rate {language}"] = of_language[at].numpy()
    if prompts is not None:
        texts = texts_by_language("prompts", prompts.prompts if isinstance(prompts, ParallelPrompts) else prompts)
        with running(model, "describe neurons", n_rows=sum(map(len, texts.values())), progress=progress) as loop:
            values = {
                language: values_at(model, layers, of_language, language, index=-1, how=how, loop=loop)
                for language, of_language in texts.items()
            }
        found = _largest(texts, values, places, n_prompts)
        table["prompts"] = pd.Series(found, dtype=object)
        if token_by_token:
            at_tokens = _token_by_token(model, layers, places, found, how=how, progress=progress)
            table["tokens"] = pd.Series(at_tokens, dtype=object)
    return table


def named(layers: Sequence[NeuronLayer], places: Int[Tensor, "place 2"]) -> pd.DataFrame:
    """Return the columns layer and neuron of some neurons; in a mixture of experts also expert and index."""
    parts = []
    for layer in sorted(set(places[:, 0].tolist())):
        here = (places[:, 0] == layer).nonzero().flatten()
        parts.append(pd.DataFrame({"layer": layer, **layers[layer].columns(places[here, 1])}, index=here.numpy()))
    table = pd.concat(parts or [pd.DataFrame({"layer": [], **layers[0].columns(places[:, 1])})]).sort_index()
    if "expert" in table:  # a dense layer between mixtures of experts does not have these columns
        table = table.fillna({"expert": -1, "index": table["neuron"]}).astype("int64")
    return table


def _places(neurons: Any, layers: Sequence[NeuronLayer]) -> Int[Tensor, "place 2"]:
    """The layer and the number of each neuron."""
    widths = [layer.width for layer in layers]
    shape = (len(widths), max(widths))
    if isinstance(neurons, pd.DataFrame):
        mask_from_frame(neurons, n_layers=shape[0], d_mlp=shape[1])  # refuses what is beyond the shape
        neurons = list(zip(neurons["layer"].tolist(), neurons["neuron"].tolist(), strict=True))
    if isinstance(neurons, Tensor):
        if neurons.dtype != torch.bool or tuple(neurons.shape) != shape:
            raise NeuronShareError(
                f"The mask is {neurons.dtype} of shape {tuple(neurons.shape)}; give booleans of shape {shape}."
            )
        neurons = neurons.nonzero().tolist()
    try:
        places = torch.tensor([(index(layer), index(neuron)) for layer, neuron in neurons], device="cpu").reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise NeuronShareError(
            f"neurons is a {type(neurons).__name__}; give a mask, a table with the columns layer and neuron, or pairs "
            "of a layer's number and a neuron's."
        ) from error
    if not 0 < len(places) <= _MOST:
        raise NeuronShareError(f"There are {len(places)} neurons; give 1 to {_MOST}, such as those of top_neurons.")
    is_neuron = neurons_of(widths)
    for layer, neuron in places.tolist():
        if not (0 <= layer < shape[0] and 0 <= neuron < shape[1] and is_neuron[layer, neuron]):
            raise NeuronShareError(
                f"There is no neuron {neuron} in layer {layer}: there are {shape[0]} layers of "
                f"{'/'.join(map(str, sorted(set(widths))))} neurons, counted from 0."
            )
    return places


def _warn(model: LensModel, added: models.Added) -> None:
    messages = [provenance.processed_weights(provenance.describe(model)["weights"], "the tokens")]
    if (what := added.unknown) is not None:
        messages.append(f"{models.name_of(model)} {what}; the tokens are of what the MLPs write, not of what is added.")
    for message in filter(None, messages):
        warn(message)


def _tokens(
    model: LensModel,
    layers: Sequence[NeuronLayer],
    places: Int[Tensor, "place 2"],
    n_tokens: int,
    formulas: Sequence[NormFormula],
) -> tuple[list[list[str]], list[list[str]]]:
    """For each neuron, the tokens that it promotes and those that it suppresses most."""
    written = torch.zeros(len(places), model.cfg.d_model, dtype=torch.float32, device=models.device_of(model))
    for layer in sorted(set(places[:, 0].tolist())):
        here = places[:, 0] == layer
        rows = layers[layer].W_out()[places[here, 1]].to(written)
        written[here.to(written.device)] = formulas[layer].to(rows).weighted(rows)
    norm = models.final_norm(model).to(written)
    n_vocabulary = min(models.vocabulary_size(model), len(model.tokenizer))
    n_tokens, step = min(n_tokens, n_vocabulary), max(n_tokens, _CHUNK // max(len(places), model.cfg.d_model))
    best: dict[int, tuple[Tensor, Tensor]] = {}  # for both signs, the largest pushes so far and their tokens
    for start in range(0, n_vocabulary, step):
        tokens = torch.arange(start, min(start + step, n_vocabulary), device="cpu")
        directions = norm.unscaled(models.unembedding(model, slice(start, start + len(tokens))).T.to(written))
        pushes = projected(directions, written).cpu()  # neuron token
        for sign in (1, -1):
            values, numbers = sign * pushes, tokens.expand(len(places), -1)
            if sign in best:
                values, numbers = (torch.cat(pair, dim=1) for pair in zip(best[sign], (values, numbers), strict=True))
            values, order = values.topk(n_tokens, dim=1)
            best[sign] = values, numbers.gather(1, order)
    promotes, suppresses = (
        [[model.tokenizer.decode([token]) for token in row] for row in best[sign][1].tolist()] for sign in (1, -1)
    )
    return promotes, suppresses


def _routed(sharing: NeuronSharing) -> Float[Tensor, "layer neuron"]:
    """In percent, for how many prompts each neuron is computed."""
    assert sharing.routing is not None  # the caller has asked
    counts = torch.zeros(sharing.is_neuron.shape, dtype=torch.float64, device="cpu")
    for example in range(len(sharing)):
        counts += sharing.routing.neurons(sharing.widths, slice(example, example + 1)).sum((0, 1))
    return 100 * counts / (len(sharing) * len(sharing.languages))


def _require_same_model(model: LensModel, rates: NeuronRates, layers: Sequence[NeuronLayer]) -> None:
    if rates.widths != tuple(layer.width for layer in layers):
        raise NeuronShareError(
            f"The rates are of layers of {', '.join(map(str, rates.widths))} neurons, and the model has "
            f"{', '.join(str(layer.width) for layer in layers)}; count them with this model."
        )
    if not provenance.of_same_weights(model, rates):
        raise NeuronShareError("The rates are of different weights; count them with this model.")


def _largest(
    texts: Mapping[str, Sequence[str]],
    values: Mapping[str, Float[Tensor, "text layer neuron"]],
    places: Int[Tensor, "place 2"],
    n: int,
) -> list[list[tuple[str, str, float]]]:
    """For each neuron, the texts with its largest values, with the language and the value."""
    each = [(language, text) for language, of_language in texts.items() for text in of_language]
    of_places = torch.cat([of_language[:, places[:, 0], places[:, 1]] for of_language in values.values()])
    ranked, order = of_places.sort(dim=0, descending=True, stable=True)
    return [
        [(*each[row], value) for row, value in zip(rows, of_rows, strict=True)]
        for rows, of_rows in zip(order[:n].T.tolist(), ranked[:n].T.tolist(), strict=True)
    ]


def _token_by_token(
    model: LensModel,
    layers: Sequence[NeuronLayer],
    places: Int[Tensor, "place 2"],
    found: Sequence[Sequence[tuple[str, str, float]]],
    *,
    how: Running,
    progress: bool,
) -> list[list[list[tuple[str, float | None]]]]:
    """For each neuron, and each of the texts that were found for it, its value at each token."""
    wanted: dict[tuple[str, str], list[int]] = {}  # a language and a text, and the neurons that are asked about there
    for neuron, of_neuron in enumerate(found):
        for language, text, _ in of_neuron:
            wanted.setdefault((language, text), []).append(neuron)
    rows = [
        models.tokenised(model, [text], language, [text], prepend_bos=how.prepend_bos)[0] for language, text in wanted
    ]
    asked = list(wanted.values())
    used = sorted(set(places[:, 0].tolist()))
    values: list[Tensor] = [torch.empty(0, device="cpu")] * len(rows)  # of each row: [token, asked neuron]

    def compute(batch: Batch) -> Record:
        shown = batch.seen_by("decoder").shown().cpu()
        at = shown.nonzero(as_tuple=True)
        most = max(len(asked[row]) for row in batch.rows)
        read = torch.zeros(*shown.shape, most, dtype=torch.float32, device="cpu")

        def take(number: int, tensors: tuple[Tensor, ...]) -> None:
            places_here = tuple(place.to(tensors[-1].device) for place in at)
            of_layer = layers[used[number]].read(tensors, places_here, absent=0.0).float().cpu()
            for place, row in enumerate(batch.rows):
                slots = [slot for slot, each in enumerate(asked[row]) if places[each, 0] == used[number]]
                if slots:
                    neurons = places[[asked[row][slot] for slot in slots], 1]
                    here = shown[place].nonzero()
                    read[place, here, slots] = of_layer[at[0] == place][:, neurons]

        with models.reading(model, [layers[number] for number in used], take) as run_once:
            run_once(batch)
        return {"values": read, "shown": shown}

    def keep(kept: list[int], record: Record) -> None:
        for row, of_row, shown in zip(kept, record["values"], record["shown"], strict=True):
            values[row] = of_row[shown][:, : len(asked[row])]

    with running(model, "tokens of prompts", n_rows=len(rows), progress=progress) as loop:
        loop(Plan(model, rows, batch_size=how.batch_size), compute, keep, stage="tokens")
    special = set(models.special_tokens(model))
    texts = [[(model.tokenizer.decode([token]), token in special) for token in row] for row in rows]
    numbers = {each: number for number, each in enumerate(wanted)}

    def along(neuron: int, language: str, text: str) -> list[tuple[str, float | None]]:
        row = numbers[language, text]
        column = values[row][:, asked[row].index(neuron)].tolist()
        return [
            (token, None if left_out else value) for (token, left_out), value in zip(texts[row], column, strict=True)
        ]

    return [
        [along(neuron, language, text) for language, text, _ in of_neuron] for neuron, of_neuron in enumerate(found)
    ]
