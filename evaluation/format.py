"""Figures as texts, for tables."""

from __future__ import annotations

from typing import Any


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def interval(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value['mean']:+.1f} [{100 * value['low']:+.1f}, {100 * value['high']:+.1f}]"
