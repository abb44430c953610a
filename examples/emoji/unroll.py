"""The drafter as it drafts, unrolled over whole pictures at once: its own predictions in, pass by pass.

Pass k predicts at every slot what a draft of depth k predicts there: its last k - 1 inputs are the drafter's own
predictions, everything before them the target's states (the first k - 1 slots are shallower: nothing is drafted before
them). EAGLE-3's training-time test (arXiv 2503.01840, section 3.2;
the attention of its `traineagle3`) for a drafter in LANTERN's format.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ...export.models.drafter import Drafter, DrafterLayer
from ...export.models.llamagen import apply_rope


def unroll(drafter: Drafter, states: Tensor, ids: Tensor, first: int, passes: int) -> Iterator[Tensor]:
    """Yields per pass the predicted states [R, L - 1 - first, D] behind the slots first ... L - 2.

    `states` [R, L, D] are the target's, `ids` [R, L] the tokens after them; slots before `first` are never drafted.
    """
    inputs = states
    memory: list[tuple[Tensor, Tensor]] = []
    for _ in range(passes):
        predicted = read(drafter, inputs, ids, memory)[:, first:-1]
        yield predicted
        inputs = torch.cat([states[:, : first + 1], predicted.to(states.dtype)], dim=1)


def read(drafter: Drafter, hidden: Tensor, ids: Tensor, memory: list[tuple[Tensor, Tensor]]) -> Tensor:
    """`Drafter.forward` [R, L, D] that looks back at earlier passes' keys and values, too, and adds its own to them."""
    layer = drafter.layers[0]
    assert isinstance(layer, DrafterLayer)
    attention = layer.self_attn
    rope = drafter.rope[None, : ids.shape[1]]
    x = drafter.fc(torch.cat([drafter.embed_tokens(ids), hidden], dim=-1))
    q, k, v = (
        proj(x).unflatten(-1, (attention.n_head, -1)) for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
    )  # [R, L, H, Dh]
    q, k = apply_rope(q, rope), apply_rope(k, rope)
    memory.append((k.transpose(1, 2), v.transpose(1, 2)))
    keys, values = (torch.cat(parts, dim=2) for parts in zip(*memory, strict=True))  # [R, H, passes * L, Dh]
    seen = visible(ids.shape[1], len(memory), ids.device)
    y = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=seen)
    h = x + attention.o_proj(y.transpose(1, 2).flatten(2))
    return h + layer.mlp(layer.post_attention_layernorm(h))


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
