"""Ablation, compared with plain torch hooks on Hugging Face's modules, in every kind of run, with other hooks."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import tl_neuronshare as ns
from support import reference, zoo
from support.masks import POST, mask_of, tokens_of
from tl_neuronshare import models

SIX = ["bloom", "gpt2", "llama", "opt", "qwen2", "gemma2"]


def values_at(model, run, layer=0, *, before=()):
    """The tensor at a hook in each call of a run, after other hooks."""
    seen = []
    run([*before, (POST.format(layer), lambda tensor, hook: seen.append(tensor.clone()))])
    return seen


# Against Hugging Face.


@pytest.mark.parametrize("name", SIX)
def test_logits_are_those_of_the_hugging_face_model_with_the_same_neurons_zeroed(animals, name, backend):
    model, kind = animals.lens(name, backend), zoo.KINDS[name]
    mask, tokens = mask_of(model), tokens_of(model)
    hugging_face, _ = animals.hugging_face(name)
    with torch.no_grad():
        found = model.run_with_hooks(tokens, fwd_hooks=ns.ablation_hooks(model, mask))
        plain = hugging_face(tokens).logits
        with reference.zeroed(hugging_face, module=kind.down, mask=mask):
            expected = hugging_face(tokens).logits
    assert (found - expected).abs().max() <= 5e-5
    assert (plain - expected).abs().max() > 0.1


def negated(values):
    return -values


OTHER_MODES = {
    "scale": lambda values, at, neurons: torch.where(neurons, 2.5 * values, values),
    "mean": lambda values, at, neurons: torch.where(neurons, at, values),
    "resample": lambda values, at, neurons: torch.where(neurons, at, values),
    negated: lambda values, at, neurons: torch.where(neurons, -values, values),
}


@pytest.mark.parametrize("mode", OTHER_MODES)
@pytest.mark.parametrize("name", ["bloom", "llama"])
def test_other_modes_equal_the_same_in_plain_torch(animals, name, mode, backend):
    model, kind = animals.lens(name, backend), zoo.KINDS[name]
    mask, tokens = mask_of(model), tokens_of(model)
    numbers = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1))
    values = {"scale": 2.5, "mean": numbers, "resample": numbers[None]}.get(mode)
    rows = mask[None] if mode == "resample" else mask
    hugging_face, _ = animals.hugging_face(name)
    edits = {
        layer: partial(OTHER_MODES[mode], at=numbers[layer], neurons=mask[layer]) for layer in range(kind.n_layers)
    }
    with torch.no_grad(), reference.edited(hugging_face, module=kind.down, edits=edits):
        found = model.run_with_hooks(tokens, fwd_hooks=ns.ablation_hooks(model, rows, mode=mode, values=values))
        assert (found - hugging_face(tokens).logits).abs().max() <= 1e-4


def test_the_gate_is_zeroed_and_scaled_as_the_product_is(animals, backend):
    model = animals.lens("llama", backend)
    mask, tokens = mask_of(model), tokens_of(model)
    run = partial(model.run_with_hooks, tokens)
    for options in ({}, {"mode": "scale", "values": 2.0}):
        gate, post = (run(fwd_hooks=ns.ablation_hooks(model, mask, site=site, **options)) for site in ("gate", "post"))
        assert torch.equal(gate, post)
    # A neuron whose up branch is zero writes nothing either.
    up, post = (run(fwd_hooks=ns.ablation_hooks(model, mask, site=site)) for site in ("up", "post"))
    assert (up - post).abs().max() < 1e-5
    means = ns.reference_values(model, {"en": zoo.TEXTS["en"]}, site="up")["en"]
    hooks = ns.ablation_hooks(model, mask, site="up", mode="mean", values=means)
    assert (run(fwd_hooks=hooks) - post).abs().max() > 1e-3


# Invariant 5: composition.


def test_hooks_of_the_four_types_together_equal_zeroing_all(bloom, prompts):
    sharing, tokens = ns.categorise(bloom, prompts), tokens_of(bloom)
    all_types = [ns.ablation_hooks(bloom, sharing.mask(type)[0]) for type in ns.NeuronType]
    every = ns.ablation_hooks(bloom, torch.ones(3, 128, dtype=torch.bool))
    together = bloom.run_with_hooks(tokens, fwd_hooks=[hook for hooks in all_types for hook in hooks])
    assert torch.equal(together, bloom.run_with_hooks(tokens, fwd_hooks=every))
    assert not torch.equal(together, bloom.run_with_hooks(tokens, fwd_hooks=all_types[0]))


def test_in_every_kind_of_run_and_beside_the_user_s_hooks(bloom):
    mask, tokens = mask_of(bloom), tokens_of(bloom)
    hooks = ns.ablation_hooks(bloom, mask)
    ablated = bloom.run_with_hooks(tokens, fwd_hooks=hooks)
    with bloom.hooks(fwd_hooks=hooks):
        assert torch.equal(bloom(tokens), ablated)
        logits, cache = bloom.run_with_cache(tokens)
    assert torch.equal(logits, ablated)
    for layer in range(3):
        assert not cache[POST.format(layer)][..., mask[layer]].any()
        assert cache[POST.format(layer)][..., ~mask[layer]].any()
    assert torch.equal(bloom.run_with_hooks(tokens, fwd_hooks=hooks), ablated)  # and again
    plain = bloom(tokens)
    assert not torch.equal(plain, ablated)
    # Before a user's hook on the same point, and after it.
    seen = {}

    def watch(tensor, hook, *, name):
        seen[name] = tensor.clone()

    name = POST.format(1)
    bloom.run_with_hooks(
        tokens, fwd_hooks=[(name, partial(watch, name="before")), *hooks, (name, partial(watch, name="after"))]
    )
    assert seen["before"][..., mask[1]].any()
    assert not seen["after"][..., mask[1]].any()


def test_edits_are_out_of_place_and_let_gradients_through(bloom):
    mask, tokens = mask_of(bloom), tokens_of(bloom)
    kept = []
    watch = [(POST.format(layer), lambda tensor, hook: kept.append((tensor, tensor.clone()))) for layer in range(3)]
    logits = bloom.run_with_hooks(tokens, fwd_hooks=watch + ns.ablation_hooks(bloom, mask))
    assert len(kept) == 3
    for tensor, copy in kept:
        assert torch.equal(tensor, copy)
    (gradient,) = torch.autograd.grad(logits.sum(), kept[0][0])
    assert not gradient[..., mask[0]].any()
    assert gradient[..., ~mask[0]].any()


def test_a_function_that_edits_in_place_changes_no_other_neurons(bloom):
    """As a user's own functions often do: `post[...] = x`."""
    mask, tokens = mask_of(bloom), tokens_of(bloom)
    ways = (lambda post: -post, lambda post: post.mul_(-1))
    with torch.no_grad():
        out, within = (bloom.run_with_hooks(tokens, fwd_hooks=ns.ablation_hooks(bloom, mask, mode=f)) for f in ways)
    assert torch.equal(out, within)


def test_the_same_hooks_twice_act_twice(bloom):
    mask, tokens = mask_of(bloom), tokens_of(bloom)
    twice, four = (ns.ablation_hooks(bloom, mask, mode="scale", values=value) for value in (2.0, 4.0))
    found = bloom.run_with_hooks(tokens, fwd_hooks=twice + twice)
    assert torch.equal(found, bloom.run_with_hooks(tokens, fwd_hooks=four))


def test_categorising_inside_sees_the_ablated_model(bloom, prompts):
    mask = mask_of(bloom)
    with bloom.hooks(fwd_hooks=ns.ablation_hooks(bloom, mask)):
        assert not (ns.categorise(bloom, prompts).mask("all-shared") & mask).any()


def test_a_call_under_two_names_is_edited_once(animals):
    """As in a bridge's compatibility mode, where a hook point has several names."""
    model = animals.lens("bloom", "bridge")
    mask, tokens = mask_of(model), tokens_of(model)
    hooks = ns.ablation_hooks(model, mask, mode="scale", values=3.0)
    once = model.run_with_hooks(tokens, fwd_hooks=hooks)
    points, calls = model.hook_dict, []
    try:
        for name, hook in [*hooks, (POST.format(0), lambda tensor, hook: calls.append(hook.name))]:
            points[name].add_hook(hook, alias_names=[name, "another name"])
        assert torch.equal(model(tokens), once)
        assert torch.equal(model(tokens), once)
    finally:
        model.reset_hooks()
    assert len(calls) == 4  # the trap: each of two passes calls twice


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision(animals, dtype, backend):
    model = ns.load_model(animals.directory("bloom"), backend=backend, device="cpu", dtype=dtype)
    mask, tokens = mask_of(model), tokens_of(model)
    values = torch.full(mask.shape, 0.1)
    for options, expected in (
        ({}, torch.zeros(())),
        ({"mode": "mean", "values": values}, torch.tensor(0.1)),
    ):
        hooks = ns.ablation_hooks(model, mask, **options)
        (seen,) = values_at(model, lambda added: model.run_with_hooks(tokens, fwd_hooks=added), before=hooks)
        assert seen.dtype == dtype
        assert (seen[..., mask[0]] == expected.to(dtype)).all()
        (before,) = values_at(model, lambda added: model.run_with_hooks(tokens, fwd_hooks=added))
        assert torch.equal(seen[..., ~mask[0]], before[..., ~mask[0]])


def test_on_another_device_than_the_masks(bloom):
    """Masks, values and positions move to the device of the layer's tensor: here one without memory."""
    mask, values = mask_of(bloom, rows=(2,)), torch.ones(2, 3, 128)
    places = torch.ones(2, 4, dtype=torch.bool)
    for options in ({}, {"mode": "mean", "values": values}, {"mode": "scale", "values": 2.0}, {"position": places},
                    {"position": "last"}, {"tokens": torch.ones(2, 4).long()}, {"mode": negated}):  # fmt: skip
        for _, hook in ns.ablation_hooks(bloom, mask, **options):
            assert hook(torch.ones(2, 4, 128, device="meta"), hook=None).device.type == "meta"


# Rows and positions.


def test_each_row_has_its_own_mask_in_a_left_padded_batch(bloom, prompts):
    rows = models.tokenise(bloom, prompts.prompts["ru"])
    tokens, attention = models.left_padded(rows)
    assert attention is not None
    masks = mask_of(bloom, rows=(len(rows),))
    together = bloom.run_with_hooks(tokens, attention_mask=attention, fwd_hooks=ns.ablation_hooks(bloom, masks))
    for row, ids in enumerate(rows):
        alone = bloom.run_with_hooks(torch.tensor([ids]), fwd_hooks=ns.ablation_hooks(bloom, masks[row]))
        assert (together[row, -1] - alone[0, -1]).abs().max() < 1e-4
    assert len({tuple(ids) for ids in rows}) == len(rows)


@pytest.mark.parametrize(("position", "index"), [("last", -1), (-1, -1), (-3, -3)])
def test_a_position_is_edited_and_no_other(bloom, position, index):
    mask, tokens = mask_of(bloom), tokens_of(bloom)
    run = partial(bloom.run_with_hooks, tokens)
    (before,) = values_at(bloom, lambda added: run(fwd_hooks=added))
    for prompt_tokens in (None, tokens.shape[1]):
        hooks = ns.ablation_hooks(bloom, mask, position=position, prompt_tokens=prompt_tokens)
        (after,) = values_at(bloom, lambda added, hooks=hooks: run(fwd_hooks=added), before=hooks)
        assert not after[0, index, mask[0]].any()
        after[0, index, mask[0]] = before[0, index, mask[0]]
        assert torch.equal(after, before)


def test_positions_as_a_mask_and_without_special_tokens(animals, backend):
    model = animals.lens("gpt2", backend)  # its prompts begin with a BOS
    mask, tokens = mask_of(model), tokens_of(model)
    run = partial(model.run_with_hooks, tokens)
    (before,) = values_at(model, lambda added: run(fwd_hooks=added))
    places = torch.arange(tokens.shape[1])[None] % 2 == 0
    ways = {
        "mask": (ns.ablation_hooks(model, mask, position=places), places[0]),
        "no BOS": (ns.ablation_hooks(model, mask, tokens=tokens), torch.arange(tokens.shape[1]) > 0),
    }
    for hooks, expected in ways.values():
        (after,) = values_at(model, lambda added, hooks=hooks: run(fwd_hooks=added), before=hooks)
        assert torch.equal((after != before).any(-1)[0], expected)
        assert not after[0, expected][:, mask[0]].any()


# Generation.


PROMPTS = ["Country code of Peru →", "Sum of 12 and 10 →", "Währung von Japan →", "Kontinent: Kenia →"]
NEW = 4


def generate(model, prompts, **options):
    options = {"max_new_tokens": NEW, "do_sample": False, "stop_at_eos": False, "verbose": False} | options
    return model.generate(prompts, return_type="tokens", **options)


@pytest.mark.parametrize("position", ["all", "last"])
def test_generation_with_and_without_a_cache_equals_a_manual_loop(animals, backend, position):
    model = animals.lens("demo", backend)
    hugging_face, _ = animals.hugging_face("demo")
    mask = ns.categorise(model, ns.demo.prompts()[:1]).mask("all-shared")[0]
    changed = 0
    for prompt in PROMPTS:
        tokens = model.to_tokens(prompt)
        n_prompt = tokens.shape[1]
        where = {} if position == "all" else {"position": "last", "prompt_tokens": n_prompt}
        found = []
        for cached in (True, False):
            with model.hooks(fwd_hooks=ns.ablation_hooks(model, mask, **where)):
                found.append(generate(model, tokens, use_past_kv_cache=cached))
        assert torch.equal(*found)

        def zero(values, *, neurons, n_prompt=n_prompt):
            places = slice(None) if position == "all" else slice(n_prompt - 1, n_prompt)
            values = values.clone()
            values[:, places] *= (~neurons).float()
            return values

        edits = {layer: partial(zero, neurons=mask[layer]) for layer in range(4)}
        with reference.edited(hugging_face, module=zoo.KINDS["bloom"].down, edits=edits):
            assert found[0][0].tolist() == reference.greedy(hugging_face, tokens[0].tolist(), NEW)
        changed += found[0][0].tolist() != reference.greedy(hugging_face, tokens[0].tolist(), NEW)
    assert changed


@pytest.mark.parametrize("cached", [True, False])
def test_masks_stay_with_their_rows_in_generation_with_left_padding(animals, backend, cached):
    model = animals.lens("demo", backend)
    lengths = [model.to_tokens(prompt).shape[1] for prompt in PROMPTS]
    assert len(set(lengths)) > 1
    masks = mask_of(model, rows=(len(PROMPTS),), share=0.4)
    for where in ({}, {"position": "last", "prompt_tokens": max(lengths)}):
        with model.hooks(fwd_hooks=ns.ablation_hooks(model, masks, **where)):
            together = generate(model, PROMPTS, use_past_kv_cache=cached)[:, -NEW:]
        alone = []
        for prompt, mask, length in zip(PROMPTS, masks, lengths, strict=True):
            there = where | ({"prompt_tokens": length} if where else {})
            with model.hooks(fwd_hooks=ns.ablation_hooks(model, mask, **there)):
                alone.append(generate(model, model.to_tokens(prompt))[0, -NEW:])
        assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("cached", [True, False])
def test_the_last_prompt_token_and_nothing_after_it(animals, backend, cached):
    """The prompt's last token is edited, and generated tokens are not; even after a one-token prompt."""
    model = animals.lens("demo", backend)
    mask = mask_of(model)
    for prompt in (PROMPTS[0], "→"):
        tokens = model.to_tokens(prompt)
        n_prompt = tokens.shape[1]
        hooks = ns.ablation_hooks(model, mask, position="last", prompt_tokens=n_prompt)
        edited = []

        def before(tensor, hook, edited=edited):
            edited.append([tensor])

        def after(tensor, hook, edited=edited):
            edited[-1] = (edited[-1][0] != tensor).any(-1)[0].nonzero().flatten().tolist()

        watched = [(POST.format(0), before), *hooks, (POST.format(0), after)]
        with model.hooks(fwd_hooks=watched):
            generate(model, tokens, use_past_kv_cache=cached)
        later = [] if cached else [n_prompt - 1]
        assert edited == [[n_prompt - 1], *[later] * (NEW - 1)]


# Layers of different width.


def test_layers_of_different_width(animals):
    """A narrower layer takes its own columns of a mask, and refuses neurons beyond them."""
    model = animals.narrowed_llama()
    mask = torch.rand(3, 96) < 0.4
    with pytest.raises(ns.NeuronShareError, match="Layer 1 has 40 neurons, but the mask has some beyond"):
        ns.ablation_hooks(model, mask)
    mask[1, 40:] = False
    hook = ns.ablation_hooks(model, mask)[1][1]
    edited = hook(torch.ones(1, 2, 40), hook=None)
    assert torch.equal(edited[0, 0] == 0, mask[1, :40])


# Bad input.


WRONG = {
    "numbers for a mask": ({"mask": torch.ones(3, 128)}, "The mask is torch.float32 of shape .3, 128.; give a boolean"),
    "a list for a mask": ({"mask": [[True]]}, "The mask is list"),
    "too few layers": ({"mask": torch.ones(2, 128, dtype=torch.bool)}, r"shape \(2, 128\); .* 3 layers of 128 neurons"),
    "too few neurons": ({"mask": torch.ones(3, 64, dtype=torch.bool)}, r"shape \(3, 64\); .* give \(3, 128\)"),
    "four axes": ({"mask": torch.ones(1, 1, 3, 128, dtype=torch.bool)}, r"shape \(1, 1, 3, 128\)"),
    "an unknown mode": ({"mode": "remove"}, "mode='remove' is unknown; use one of zero, mean, resample, scale, or a"),
    "mean without values": ({"mode": "mean"}, "mode='mean' needs values, a float tensor .*; got none"),
    "resample without values": ({"mode": "resample"}, "mode='resample' needs values"),
    "scale without values": ({"mode": "scale"}, "mode='scale' needs a number as values, such as 2.0; got none"),
    "scale by a tensor": ({"mode": "scale", "values": torch.ones(3)}, "got torch.float32 of shape"),
    "zero with values": ({"values": 2.0}, "mode='zero' takes no values"),
    "values of another shape": (
        {"mode": "mean", "values": torch.ones(3, 64)},
        r"values have shape \(3, 64\), but the mask",
    ),
    "values that are NaN": ({"mode": "mean", "values": torch.full((3, 128), torch.nan)}, "values are NaN or infinite"),
    "an unknown position": ({"position": "first"}, "position='first' is unknown"),
    "any": ({"position": "any"}, "position='any' is unknown here; use all, last"),
    "a positive position": ({"position": 2}, "position=2 is unknown"),
    "positions that are numbers": ({"position": torch.ones(1, 4)}, "position is torch.float32 of shape"),
    "before the prompt": ({"position": -9, "prompt_tokens": 3}, "position=-9 is before the first of the prompt's 3"),
    "not a number of tokens": ({"position": "last", "prompt_tokens": 0}, "prompt_tokens=0 is not a number of tokens"),
    "tokens at last": (
        {"position": "last", "tokens": torch.ones(1, 4).long()},
        "Special tokens can be skipped only with",
    ),
    "a list of tokens": ({"tokens": [[1]]}, r"tokens is \[\[1\]\]; give the prompt's token ids"),
    "tokens and their number": ({"tokens": torch.ones(1, 4).long(), "prompt_tokens": 3}, "prompt_tokens=3, but tokens"),
    "an unknown site": ({"site": "pre"}, "site='pre' is unknown"),
    "up without a gate": ({"site": "up"}, "has no gate, and so no up branch"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_what_ablation_hooks_refuses(animals, options, message, as_users_run_it):
    model = animals.lens("bloom", "bridge")
    mask = options.pop("mask") if "mask" in (options := dict(options)) else mask_of(model)
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.ablation_hooks(model, mask, **options)


def test_the_gate_takes_no_other_values(animals, as_users_run_it):
    model = animals.lens("llama", "bridge")
    with pytest.raises(ns.NeuronShareError, match="site='gate' with mode='mean'.*use that site"):
        ns.ablation_hooks(model, mask_of(model), site="gate", mode="mean", values=torch.ones(3, 96))


@pytest.mark.parametrize("n_rows", [1, 3])
def test_a_batch_of_another_size_is_an_error_and_never_broadcast(bloom, n_rows, as_users_run_it):
    tokens = tokens_of(bloom).expand(2, -1)
    masks, values = mask_of(bloom, rows=(n_rows,)), torch.ones(n_rows, 3, 128)
    ways = [
        ns.ablation_hooks(bloom, masks),
        ns.ablation_hooks(bloom, masks[0], mode="resample", values=values),
        ns.ablation_hooks(bloom, masks[0], position=torch.ones(n_rows, tokens.shape[1], dtype=torch.bool)),
    ]
    for hooks in ways:
        with pytest.raises(
            ns.NeuronShareError, match=f"(2 rows, but .* for {n_rows}|for {n_rows} rows, but the batch has 2)"
        ):
            bloom.run_with_hooks(tokens, fwd_hooks=hooks)
    with pytest.raises(ns.NeuronShareError, match="mask has 2 rows, but the tokens or positions have 3"):
        ns.ablation_hooks(bloom, mask_of(bloom, rows=(2,)), tokens=torch.ones(3, 4).long())
    bloom(tokens)  # nothing is left behind


def test_calls_that_are_neither_the_prompt_nor_a_step_are_an_error(bloom, as_users_run_it):
    hooks = ns.ablation_hooks(bloom, mask_of(bloom), position="last", prompt_tokens=4)
    for tokens in ([[5, 6, 7]], [[5]]):
        with pytest.raises(ns.NeuronShareError, match=rf"gave {len(tokens[0])} token.s., but the prompt has 4"):
            bloom.run_with_hooks(torch.tensor(tokens), fwd_hooks=hooks)
    hooks = ns.ablation_hooks(bloom, mask_of(bloom), position=-4)
    with pytest.raises(ns.NeuronShareError, match="gave 3 tokens; there is no position -4 in them"):
        bloom.run_with_hooks(torch.tensor([[5, 6, 7]]), fwd_hooks=hooks)


@pytest.mark.parametrize("edit", [lambda tensor: tensor[:, :1], lambda tensor: tensor.double(), lambda tensor: None])
def test_functions_that_change_shape_or_dtype_are_an_error(bloom, edit, as_users_run_it):
    hooks = ns.ablation_hooks(bloom, mask_of(bloom), mode=edit)
    with pytest.raises(ns.NeuronShareError, match="the function given as mode returned .*keep shape and dtype"):
        bloom.run_with_hooks(torch.tensor([[5, 6, 7]]), fwd_hooks=hooks)


def test_the_first_token_is_a_position(bloom):
    """Also the prompt's very first token can be edited, from its end; one before it is refused."""
    mask, tokens = mask_of(bloom), tokens_of(bloom)
    n_tokens, run = tokens.shape[1], partial(bloom.run_with_hooks, tokens)
    (before,) = values_at(bloom, lambda added: run(fwd_hooks=added))
    for prompt_tokens in (None, n_tokens):
        hooks = ns.ablation_hooks(bloom, mask, position=-n_tokens, prompt_tokens=prompt_tokens)
        (after,) = values_at(bloom, lambda added, hooks=hooks: run(fwd_hooks=added), before=hooks)
        assert not after[0, 0, mask[0]].any()
        changed = (after - before).abs().amax(-1)[0] > 1e-4
        assert torch.equal(changed, torch.arange(n_tokens) == 0)


def test_where_the_prompt_ends_is_not_known_positions_count_in_each_call(bloom):
    mask, tokens = mask_of(bloom), tokens_of(bloom)
    hooks = ns.ablation_hooks(bloom, mask, position=-1)
    for seen in (tokens, tokens[:, :1], tokens[:, :1]):
        (before,) = values_at(bloom, lambda added, seen=seen: bloom.run_with_hooks(seen, fwd_hooks=added))
        (after,) = values_at(bloom, lambda added, seen=seen: bloom.run_with_hooks(seen, fwd_hooks=added), before=hooks)
        assert torch.equal((after != before).any(-1)[0], torch.arange(seen.shape[1]) == seen.shape[1] - 1)
    with pytest.raises(ns.NeuronShareError, match="gave 1 tokens; there is no position -2"):
        bloom.run_with_hooks(tokens[:, :1], fwd_hooks=ns.ablation_hooks(bloom, mask, position=-2))


def test_without_a_cache_later_tokens_are_edited_too_and_special_ones_spared(animals, backend):
    model = animals.lens("gpt2", backend)  # its prompts begin with a BOS
    mask, tokens = mask_of(model), tokens_of(model)
    hooks = ns.ablation_hooks(model, mask, tokens=tokens)
    longer = torch.cat([tokens, tokens[:, -2:]], dim=1)
    model.run_with_hooks(tokens, fwd_hooks=hooks)
    (before,) = values_at(model, lambda added: model.run_with_hooks(longer, fwd_hooks=added))
    (after,) = values_at(model, lambda added: model.run_with_hooks(longer, fwd_hooks=added), before=hooks)
    assert torch.equal((after != before).any(-1)[0], torch.arange(longer.shape[1]) > 0)


def test_values_of_other_neurons_may_be_unknown(bloom):
    """Values that are NaN outside the mask are not put anywhere."""
    mask, tokens = mask_of(bloom), tokens_of(bloom)
    values = torch.rand(mask.shape)
    unknown = values.masked_fill(~mask, torch.nan)
    logits = [
        bloom.run_with_hooks(tokens, fwd_hooks=ns.ablation_hooks(bloom, mask, mode="mean", values=each))
        for each in (values, unknown)
    ]
    assert torch.equal(*logits)
    with pytest.raises(ns.NeuronShareError, match="values are NaN or infinite"):
        ns.ablation_hooks(bloom, mask, mode="mean", values=values.masked_fill(mask, torch.nan))
