"""The drafter as it drafts, unrolled over whole images at once: its own predictions in, pass by pass.

Pass k predicts at every slot what a draft of depth k predicts there: its last k - 1 inputs are the drafter's own
predictions, everything before them the target's states (the first k - 1 slots are shallower: nothing is drafted before
them). EAGLE-3's training-time test (arXiv 2503.01840, section 3.2;
the attention of its `traineagle3`) for a drafter in LANTERN's format.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...export.families.llamagen.drafter import Drafter


def unroll(drafter: Drafter, states: Tensor, ids: Tensor, first: int, passes: int) -> list[Tensor]:
    """Per pass the predicted states [R, L - 1 - first, D] behind the slots first ... L - 2.

    `states` [R, L, D] are the target's, `ids` [R, L] the tokens after them; slots before `first` are never drafted.
    """
    memory: list[tuple[Tensor, Tensor]] = []  # each pass's keys and values [R, H, L, Dh]

    def store(k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        memory.append((k, v))
        return tuple(torch.cat(parts, dim=2) for parts in zip(*memory, strict=True))

    inputs, predicted = states, []
    for number in range(1, passes + 1):
        features = drafter(inputs, ids, visible(ids.shape[1], number, ids.device), store)
        predicted.append(features[:, first:-1])
        inputs = torch.cat([states[:, : first + 1], predicted[-1].to(states.dtype)], dim=1)
    return predicted


def visible(length: int, passes: int, device: torch.device) -> Tensor:
    """bool [L, passes * L]: what pass `passes` sees of each pass's slots.

    Of the first pass, which read the target's states, all but the last passes - 1 slots up to its own; of each later
    pass j the one slot that stands passes - j before its own.
    """
    slots = torch.arange(length, device=device)
    back = slots[:, None] - slots[None]  # [L, L]
    parts = [back >= passes - 1, *(back == passes - j for j in range(2, passes + 1))]
    seen = torch.cat(parts, dim=1)
    seen[: passes - 1, :length] |= back[: passes - 1] == 0  # the first slots have nothing so far back
    return seen
