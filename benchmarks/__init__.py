"""Measurements; their results are kept in `RESULTS`."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
