"""Acceptance rules: small pure functions that decide at one node of the tree."""

from .base import LOG_Q, LOGITS, SIMILARITY, STATES, Cause, Decision, Draws, Node, Rule
from .registry import RULE_NAMES, check_rule_name, get_rule

__all__ = [
    "LOGITS",
    "LOG_Q",
    "RULE_NAMES",
    "SIMILARITY",
    "STATES",
    "Cause",
    "Decision",
    "Draws",
    "Node",
    "Rule",
    "check_rule_name",
    "get_rule",
]
