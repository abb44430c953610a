"""Acceptance rules: small pure functions that decide at one node of the tree."""

from .base import Decision, Draws, Node, Rule
from .registry import RULE_NAMES, get_rule

__all__ = ["RULE_NAMES", "Decision", "Draws", "Node", "Rule", "get_rule"]
