"""Acceptance rules as the kernels know them: their numbers, their settings, and what `walk_by_rule` reads."""

from __future__ import annotations

import ctypes
import math

import numpy as np

from ...rules.base import Rule
from ...rules.cascade import Cascade
from ...rules.exact import Exact
from ...rules.lantern import Lantern, LanternPlus, Neighbours
from ...rules.relaxed import CHILDREN, Relaxed
from ...rules.strict import Strict
from ...sampling import Sampling

PLAIN, EXACT, STRICT, CASCADE, LANTERN, LANTERN_PLUS = range(6)  # `Round.rule`
_RELAXED: dict[type[Relaxed], int] = {Cascade: CASCADE, Lantern: LANTERN, LanternPlus: LANTERN_PLUS}

SETTING = np.dtype(
    [(name, np.float64) for name in ("top_p", "log_guard", "tau_pos", "tau_seq", "budget")]
    + [(name, np.int32) for name in ("top_k", "children", "cap", "row_ends", "near", "unused")]
)
"""One slot's settings, `Rules.settings` [P]; a threshold that is off is NaN."""


class Rules(ctypes.Structure):
    """The second argument of `walk_by_rule`: K logits a node, I distributions, `near` columns of the table of
    neighbours, and addresses.

    settings [P] (SETTING); row_starts uint8 [S]; logits float32 and ids int64 [P, N, K]; log_q float32 [P, I, V];
    q_rows int64 [N], or [P, N] with q_stride N: the row of log_q that each node was drafted from; similarity float32
    [P, N, N]; neighbours int32 [V, near]. Scratch: p and q float64 [P, K]; places int32 [P, V], all -1 before the first
    round. What no rule in the slots reads may have the address 0.
    """

    _fields_ = [(name, ctypes.c_int32) for name in ("most", "distributions", "near", "q_stride")] + [
        (name, ctypes.c_void_p)
        for name in ("settings", "row_starts", "logits", "ids", "log_q", "q_rows", "similarity", "neighbours",
                     "p", "q", "places")
    ]  # fmt: skip


def kind_of(rule: Rule | None) -> int | None:
    """The number of a rule (None: plain decoding), or None for one that no kernel knows: the host walks by it."""
    if rule is None:
        return PLAIN
    if type(rule) is Exact:
        return EXACT
    if type(rule) is Strict:
        return STRICT
    return None if not isinstance(rule, Relaxed) or rule.lookahead else _RELAXED.get(type(rule))


def setting_of(rule: Rule | None, sampling: Sampling, most: int) -> np.ndarray:
    """The settings of a slot, SETTING []; `most` is K. For rules that `kind_of` knows."""
    setting = np.zeros((), SETTING)
    setting["top_p"] = sampling.top_p
    setting["top_k"] = 1 if sampling.greedy else min(sampling.top_k or most, most)
    setting["tau_pos"] = setting["tau_seq"] = np.nan
    if isinstance(rule, Strict):
        setting["children"] = list(CHILDREN.values()).index(rule.noise)
    if isinstance(rule, Relaxed):
        setting["children"] = list(CHILDREN).index(rule.children)
        setting["log_guard"] = math.log(max(rule.guard, 1e-30))
        setting["cap"], setting["row_ends"] = rule.cap, rule.row_ends
    if isinstance(rule, Cascade):
        for name in ("tau_pos", "tau_seq"):
            tau = getattr(rule, name)
            setting[name] = np.nan if tau is None else tau
    if isinstance(rule, Neighbours):
        setting["near"] = rule.k
    if isinstance(rule, Lantern):
        setting["budget"] = rule.delta
    if isinstance(rule, LanternPlus):
        setting["budget"] = rule.lambda_ - 1
    return setting
