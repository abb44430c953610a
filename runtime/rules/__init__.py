"""Acceptance rules: small pure functions that decide at one node of the tree."""

from .base import Cause, Decision, Draws, Node, Rule
from .registry import RULE_NAMES, check_rule_name, get_rule

__all__ = ["RULE_NAMES", "Cause", "Decision", "Draws", "Node", "Rule", "check_rule_name", "get_rule"]
