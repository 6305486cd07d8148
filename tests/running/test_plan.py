"""Which prompts share a forward pass; and the options of every run."""

from __future__ import annotations

import itertools

import torch

from tl_neuronshare import models
from tl_neuronshare.running import plan


def test_batches_hold_every_prompt_once_and_pad_little():
    lengths = [(7,), (3,), (9,), (3,), (3,), (8,), (1,), (7,)]
    for pad in (True, False):
        for batch_size in (1, 3, 100, "auto"):
            batches = plan.plan_batches(lengths, batch_size, packing=models.Packing(pad))
            assert sorted(index for batch in batches for index in batch) == list(range(8))
            if not pad:
                assert all(len({lengths[index] for index in batch}) == 1 for batch in batches)
            if batch_size != "auto":
                assert max(map(len, batches)) <= batch_size
    order = [lengths[index] for batch in plan.plan_batches(lengths, 3, packing=models.Packing()) for index in batch]
    assert order == sorted(lengths)


def test_plans_cost_least():
    """Against every way to cut the sorted lengths into batches."""
    generator = torch.Generator().manual_seed(0)
    for packing in (models.Packing(tokens_a_pass=9), models.Packing(tokens_a_pass=30)):
        for _ in range(20):
            lengths = torch.randint(1, 20, (8,), generator=generator).tolist()
            batches = plan.plan_batches([(length,) for length in lengths], "auto", packing=packing)
            assert sorted(row for batch in batches for row in batch) == list(range(8))

            def cost(parts, packing=packing):
                return sum(packing.tokens_a_pass + len(part) * max(part) for part in parts)

            ordered = sorted(lengths)
            cuts = [[place for place in range(1, 8) if bits >> place & 1] for bits in range(0, 256, 2)]
            every = [[ordered[start:stop] for start, stop in itertools.pairwise([0, *cut, 8])] for cut in cuts]
            assert cost([[lengths[row] for row in batch] for batch in batches]) == min(map(cost, every))


def test_automatic_batches_shrink_as_prompts_grow():
    assert len(plan.plan_batches([(10,)] * 300, "auto", packing=models.Packing())) == 2
    assert max(map(len, plan.plan_batches([(4096,)] * 5, "auto", packing=models.Packing()))) == 2
    assert max(map(len, plan.plan_batches([(100_000,)] * 3, "auto", packing=models.Packing()))) == 1
