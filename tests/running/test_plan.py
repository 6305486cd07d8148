"""Which prompts share a forward pass. What every run refuses is in test_bad_input.py."""

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
    """The plan costs no more than any other way to cut the sorted lengths into batches."""
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


def test_a_plan_keeps_within_the_context_the_boundary_and_room_for_logits():
    sizes = [(10, 2), (4, 9), (12, 1), (3, 3), (11, 8)]
    for batch in plan.plan_batches(sizes, "auto", packing=models.Packing(), n_ctx=20):
        assert sum(map(max, zip(*(sizes[row] for row in batch), strict=True))) <= 20
    lengths = [(length,) for length in range(1, 21)]
    for batch_size in ("auto", 20):
        batches = plan.plan_batches(lengths, batch_size, packing=models.Packing(boundary=12))
        assert all(len({lengths[row][0] > 12 for row in batch}) == 1 for batch in batches)
        assert len(batches) == 2
    few = plan.plan_batches([(5, 8)] * 40, "auto", packing=models.Packing(), per_token=plan.AUTO_NUMBERS // 80)
    assert max(map(len, few)) == 10


def test_no_prompts_are_no_batches():
    for batch_size in ("auto", 3):
        assert plan.plan_batches([], batch_size, packing=models.Packing()) == []
