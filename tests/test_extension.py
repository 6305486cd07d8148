"""Adding a kind of layer, a control, a task or a source of masks takes one class or function and one line."""

from __future__ import annotations

import pytest
import torch
from transformer_lens.hook_points import HookPoint

import tl_neuronshare as ns
from tl_neuronshare import models
from tl_neuronshare.ablation import controls
from tl_neuronshare.models import layers

FEW = ("en", "de", "zh")


class SplitPoint(HookPoint):
    """A hook point that hands its neurons on through two others, each half with its axes turned round."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_left, self.hook_right = HookPoint(), HookPoint()

    def forward(self, x):
        halves = zip((self.hook_left, self.hook_right), super().forward(x).chunk(2, dim=-1), strict=True)
        return torch.cat([*(hook(half.permute(2, 1, 0)).permute(2, 1, 0) for hook, half in halves)], dim=-1)


# A kind of layer that the library does not know: two hooks a layer, [neuron, position, row].
class Turned(models.NeuronHook):
    def shape(self, tensors):
        (tensor,) = tensors
        return (tensor.shape[2], tensor.shape[1]) if tensor.ndim == 3 and len(tensor) == self.width else None

    def read(self, tensors, places=..., *, absent=0.0):
        return tensors[0].permute(2, 1, 0)[places]

    def like(self, by_neuron, tensors):
        return by_neuron.permute(2, 1, 0)


class Halves(models.NeuronLayer):
    def columns(self, neurons):
        half = self.width // 2
        return {"neuron": neurons.numpy(), "half": (neurons >= half).numpy(), "of half": (neurons % half).numpy()}


def halves(block, name, site, hooks):
    names = [each for each in hooks if each.startswith(f"{name}.mlp.") and each.endswith(("hook_left", "hook_right"))]
    if site != "post" or not names:
        return None
    dense = layers.KINDS[-1](block, name, site, hooks)
    return Halves(tuple(Turned(each, dense.width // 2) for each in sorted(names)), dense.writers)


@pytest.fixture
def turned(backend, monkeypatch):
    """The built-in model, its neurons to be read and edited at the halves only."""
    model = ns.demo.load_model(backend=backend, device="cpu")
    for number, block in enumerate(model.blocks):
        point, name = SplitPoint(), f"blocks.{number}.mlp"
        if backend == "hooked":
            block.mlp.hook_post = point
        else:
            block.mlp.out.hook_in = point
            model._hook_registry |= {
                f"{name}.out.hook_in": point,
                f"{name}.hook_left": point.hook_left,
                f"{name}.hook_right": point.hook_right,
            }
            point.name, point.hook_left.name, point.hook_right.name = (
                f"{name}.{end}" for end in ("out.hook_in", "hook_left", "hook_right")
            )
    if backend == "hooked":
        model.setup()
    monkeypatch.setattr(layers, "KINDS", [halves, *layers.KINDS])
    return model


def test_a_made_up_kind_of_layer_goes_through_every_analysis(turned, backend):
    plain = ns.demo.load_model(backend=backend, device="cpu")
    prompts = ns.demo.prompts()[::30].select(FEW)
    layer = models.neuron_layers(turned, "post")[2]
    assert (len(layer.hooks), layer.width) == (2, 512)
    assert len(models.neuron_layers(plain, "post")[2].hooks) == 1
    assert ns.verify(turned)["passed"].all()
    sharing, expected = ns.categorise(turned, prompts), ns.categorise(plain, prompts)
    assert torch.equal(sharing.types, expected.types)
    mask = expected.mask("all-shared")[0]
    text = prompts.prompts["de"][0]
    ablated = [
        model.run_with_hooks(text, fwd_hooks=ns.ablation_hooks(model, mask, **how))
        for how in ({}, {"mode": "scale", "values": 2.0, "position": "last"}, {"mode": "mean", "values": 0.1 * mask})
        for model in (turned, plain)
    ]
    for ours, theirs in zip(ablated[::2], ablated[1::2], strict=True):
        torch.testing.assert_close(ours, theirs)
        assert (ours - turned(text)).abs().max() > 0.01
    ours, theirs = (ns.attribute(model, prompts, sharing) for model in (turned, plain))
    assert (ours["value"] - theirs["value"]).abs().max() < 1e-4
    top, of_plain = (ns.top_neurons(model, prompts, sharing, n=20) for model in (turned, plain))
    assert (top["neuron"] == of_plain["neuron"]).all()
    assert (top["neuron"] == 256 * top["half"] + top["of half"]).all()
    ours, theirs = (ns.ablation_study(model, prompts, sharing, seeds=[0]) for model in (turned, plain))
    assert (ours["value"] - theirs["value"]).abs().max() < 1e-3
    rates = (ns.activation_rates(each, prompts.prompts) for each in (turned, plain))
    assert torch.equal(*(each.counts for each in rates))


def test_the_halves_are_really_where_it_is_edited(turned):
    seen = []
    hooks = [
        (hook.name, lambda tensor, hook: seen.append(hook.name))
        for hook in models.neuron_layers(turned, "post")[1].hooks
    ]
    turned.run_with_hooks("Country code of Peru →", fwd_hooks=hooks)
    assert [name.rsplit("_", 1)[1] for name in seen] == ["left", "right"]


def test_a_made_up_control_stands_in_the_table(monkeypatch):
    monkeypatch.setattr(controls, "CONTROLS", dict(controls.CONTROLS))

    @controls.register
    class FirstNeurons(controls.Control):
        """As many neurons, the first of each layer."""

        name = "first"

        def draw(self, draw):
            order = torch.arange(draw.mask.shape[-1]).expand_as(draw.mask)
            return controls.Drawn(order < draw.mask.sum(-1, keepdim=True))

    model, prompts = ns.demo.load_model(device="cpu"), ns.demo.prompts()[:12].select(FEW)
    table = ns.ablation_study(model, prompts, ns.categorise(model, prompts), controls=["first"], seeds=[0])
    found = table.query("ablated == 'first' and type == 'all-shared' and language == 'all' and metric == 'accuracy'")
    assert found["value"].notna().all()
    assert found["neurons"].item() == pytest.approx(
        table.query("ablated == 'type' and type == 'all-shared' and language == 'all'")["neurons"].iloc[0]
    )
    with pytest.raises(ns.NeuronShareError, match=r"controls=\['last'\]; give a list of random, .*first"):
        ns.ablation_study(model, prompts, ns.categorise(model, prompts), controls=["last"])


def test_masks_of_ones_own_go_through_the_study():
    model, prompts = ns.demo.load_model(device="cpu"), ns.demo.prompts()[:12].select(FEW)
    sharing = ns.categorise(model, prompts)
    masks = {"mine": sharing.mask("all-shared"), "late": torch.zeros(4, 512, dtype=torch.bool)}
    masks["late"][3, :40] = True
    table = ns.ablation_study(model, prompts, masks, seeds=[0], active=sharing)
    types = ns.ablation_study(model, prompts, sharing, types=["all-shared"], seeds=[0])
    ours, theirs = (
        t.query("ablated in ['type', 'magnitude'] and type in ['mine', 'all-shared']")[["value", "neurons"]].to_numpy()
        for t in (table, types)
    )
    assert (ours[:8] == theirs[:8]).all()  # the same masks, ablated in the same way
    assert set(table["type"]) == {"none", "mine", "late"}
    drawn = table.query("language == 'all' and metric == 'accuracy' and type == 'late'").set_index("ablated")
    assert drawn.loc["random", "neurons"] == drawn.loc["type", "neurons"] == 10
    assert drawn.loc["other-example", "note"].startswith("all examples have one mask")
    without = ns.ablation_study(model, prompts, masks, types=["mine"], seeds=[0], controls=["random-active"])
    assert "give active=" in without.query("ablated == 'random-active'")["note"].iloc[0]
    assert set(table.attrs["masks"]) == {"mine", "late"}


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, "There are no masks"),
        ({"none": torch.zeros(4, 512, dtype=torch.bool)}, "A mask is called 'none'"),
        ({"a": torch.zeros(4, 512)}, "The mask is torch.float32"),
        ({"a": torch.zeros(4, 511, dtype=torch.bool)}, r"The mask 'a' has shape \(4, 511\); give \(4, 512\)"),
        ({"a": torch.zeros(5, 4, 512, dtype=torch.bool)}, r"has shape \(5, 4, 512\); give .* \(3, 4, 512\)"),
        (["a"], "sharing_or_masks is a list; give the NeuronSharing"),
    ],
)
def test_masks_that_cannot_be_ablated(masks, message, as_users_run_it):
    model, prompts = ns.demo.load_model(device="cpu"), ns.demo.prompts()[:3].select(FEW)
    with pytest.raises(ns.NeuronShareError, match=message):
        ns.ablation_study(model, prompts, masks)


def test_a_made_up_task_is_a_function_that_gives_prompts():
    def colours(*, languages=FEW, limit=None):
        words = {"en": ["red", "blue"], "de": ["rot", "blau"], "zh": ["红", "蓝"]}
        texts = {language: [f"{word} =" for word in words[language]][:limit] for language in languages}
        return ns.ParallelPrompts(texts, name="colours")

    sharing = ns.categorise(ns.demo.load_model(device="cpu"), colours())
    assert (len(sharing), sharing.metadata["prompts"]) == (2, "colours")


def made(draw=None, drawable=None, **attributes):
    """Make a control class of one's own out of its methods."""
    methods = {"draw": draw or (lambda self, draw: controls.Drawn(draw.mask)), **attributes}
    return type("Mine", (controls.Control,), methods | ({"drawable": drawable} if drawable else {}))


@pytest.mark.parametrize(
    ("control", "message"),
    [
        (made(name="type"), "There is a control 'type' already"),
        (made(name="none"), "There is a control 'none' already"),
        (made(name="random"), "There is a control 'random' already"),
        (made(), "cannot be registered; give a subclass of Control with a name"),
        (int, "cannot be registered; give a subclass of Control with a name"),
    ],
)
def test_controls_that_cannot_be_registered(control, message, monkeypatch, as_users_run_it):
    monkeypatch.setattr(controls, "CONTROLS", dict(controls.CONTROLS))
    with pytest.raises(ns.NeuronShareError, match=message):
        controls.register(control)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"draw": lambda self, draw: controls.Drawn(draw.mask[:1])},
            r"drew torch.bool of shape \(1, 4, 512\); it must",
        ),
        ({"draw": lambda self, draw: controls.Drawn(draw.mask.float())}, "drew torch.float32"),
        ({"draw": lambda self, draw: controls.Drawn(~draw.mask)}, "drew in layers that were not chosen"),
        ({"draw": lambda self, draw: controls.Drawn(draw.mask, {"neurons": draw.mask})}, "measures 'neurons'"),
        (
            {"drawable": lambda self, targets, target: controls.Drawable(torch.ones(3).numpy())},
            "one boolean for each of 12",
        ),
    ],
)
def test_controls_that_give_what_a_study_cannot_use(options, message, monkeypatch, as_users_run_it):
    monkeypatch.setattr(controls, "CONTROLS", dict(controls.CONTROLS))
    controls.register(made(name="mine", **options))
    model, prompts = ns.demo.load_model(device="cpu"), ns.demo.prompts()[:12].select(FEW)
    with pytest.raises(ns.NeuronShareError, match=f"The control 'mine' .*{message}|The control 'mine' {message}"):
        ns.ablation_study(
            model, prompts, ns.categorise(model, prompts), types=["specific"], controls=["mine"], layers=[3], seeds=[0]
        )


def test_only_masks_that_are_ablated_are_looked_at_and_what_is_active_is_recorded():
    model, prompts = ns.demo.load_model(device="cpu"), ns.demo.prompts()[:12].select(FEW)
    sharing = ns.categorise(model, prompts)
    masks = {"a": sharing.mask("specific"), "b": None}
    table = ns.ablation_study(model, prompts, masks, types="a", controls=["random-active"], seeds=[0], active=sharing)
    assert list(table.attrs["masks"]) == table.attrs["types"] == ["a"]
    assert table.attrs["active"]["position"] == "last"
    with pytest.raises(ns.NeuronShareError, match="active does not fit: There are 12 examples of prompts and 11"):
        ns.ablation_study(model, prompts, masks, types="a", active=sharing[1:])
    sharing.metadata["fingerprint"] = "0123456789abcdef-" + sharing.metadata["fingerprint"].split("-")[1]
    with pytest.warns(UserWarning, match="measured on different weights"):
        ns.ablation_study(model, prompts, masks, types="a", controls=[], seeds=[0], active=sharing)


def test_hooks_of_a_layer_may_fire_in_any_order(turned, monkeypatch):
    prompts = ns.demo.prompts()[::60].select(FEW)
    expected = ns.categorise(turned, prompts)
    right_first = [
        lambda *given: (layer := halves(*given)) and Halves(layer.hooks[::-1], layer.writers),
        *layers.KINDS[1:],
    ]
    monkeypatch.setattr(layers, "KINDS", right_first)
    sharing = ns.categorise(turned, prompts)
    assert torch.equal(sharing.types, expected.types.roll(256, dims=-1))
