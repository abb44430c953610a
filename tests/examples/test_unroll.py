"""Passes of the unrolled drafter against the drafter run the way it drafts: one slot after the other."""

from __future__ import annotations

import torch

from cascade_trt.examples.emoji.unroll import unroll
from cascade_trt.export.families.llamagen.drafter import Drafter, DrafterConfig

FIRST, LENGTH, PASSES = 3, 3 + 16, 4


def test_each_pass_is_a_draft_of_its_depth() -> None:
    """From every slot, a chain drafted on the target's states up to there gives what pass 1, 2, 3, 4 give there."""
    torch.manual_seed(0)
    drafter = Drafter(DrafterConfig(dim=16, n_head=2, ffn_dim=24, vocab_size=11, grid=4, prefix_len=FIRST + 1))
    states, ids = torch.randn(2, LENGTH, 16), torch.randint(11, (2, LENGTH))
    with torch.no_grad():
        passes = unroll(drafter, states, ids, FIRST, PASSES)
        for slot in range(FIRST, LENGTH - PASSES):
            inputs = states[:, : slot + 1]
            for depth, predicted in enumerate(passes):
                drafted = drafter(inputs, ids[:, : slot + 1 + depth])[:, -1]
                torch.testing.assert_close(predicted[:, slot + depth - FIRST], drafted, rtol=1e-5, atol=1e-5)
                inputs = torch.cat([inputs, drafted[:, None]], dim=1)
    assert [p.shape for p in passes] == [(2, LENGTH - 1 - FIRST, 16)] * PASSES
