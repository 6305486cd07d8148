"""What a page says besides tables: how prompts end."""

from __future__ import annotations

import pytest
import torch

import tl_neuronshare as ns
from tl_neuronshare.cli.runs import last_tokens


def sharing(shares: list[float], position: str = "last") -> ns.NeuronSharing:
    """Of three languages whose prompts end alike in these shares of the examples; the first two share neurons."""
    activated = torch.zeros(2, 3, 1, 8, dtype=torch.bool)
    activated[:, :2, 0, :4] = activated[:, 2, 0, 3:7] = True
    first, second, third = shares
    same = {"en": {"de": first, "th": second}, "de": {"th": third}}
    metadata = {"position": position, "same_last_token": same}
    return ns.NeuronSharing.from_activated(activated, languages=["en", "de", "th"], metadata=metadata)


@pytest.mark.parametrize(
    ("shares", "position", "said"),
    [
        ([0, 0, 0], "last", "in 0 % of the examples, as a mean over pairs of languages"),
        ([0.1, 0.2, 0.3], "last", "in 20 % of the examples, as a mean over pairs of languages"),
        ([1, 1, 1], "any", "in 100 % of the examples, as a mean over pairs of languages"),
        ([1, 1, 1], "last", ". WARNING: all types are of this token, whose own neurons count as shared."),
        ([0.9, 0, 0], -1, "(en-de) share 1.00 of their neurons and other pairs 0.14 (mean Jaccard index)"),
        ([0.9, 0, 0], "last", "but 90 % of one pair and 0 % of a different one. WARNING: pairs that end alike"),
    ],
)
def test_pages_say_how_prompts_end(shares, position, said):
    found = last_tokens(sharing(shares, position))
    assert said in found
    assert ("WARNING" in found) == ("WARNING" in said or "share 1.00" in said)
