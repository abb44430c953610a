"""Figures in documents are those of the committed reports, and none is typed by hand."""

from __future__ import annotations

import re

import pytest

from cascade_trt.benchmarks import report

PLAIN_WORDS = ("README.md", "docs/results.md")  # documents whose own words hold no measured figure


@pytest.mark.parametrize("name", report.DOCUMENTS)
def test_figures_are_those_of_the_reports(name: str) -> None:
    text = (report.ROOT / name).read_text(encoding="utf-8")
    assert "<!-- figures: " in text
    assert report.filled(text) == text, "run `python -m cascade_trt.benchmarks.report`"


@pytest.mark.parametrize("name", PLAIN_WORDS)
def test_no_figure_is_typed_by_hand(name: str) -> None:
    """Times, shares and ratios; versions, names of models and numbers of things may stand there."""
    text = report.without_figures((report.ROOT / name).read_text(encoding="utf-8"))
    typed = re.findall(r"(?<![\w.-])\d+\.\d+(?: ?(?:x|%|times|ms|points))\b|\b\d+(?: %| ms)(?!\w)", text)
    assert typed == []


def test_a_changed_figure_is_seen() -> None:
    text = f"a\n<!-- figures: gpt_b -->\n{report.gpt_b()}\n<!-- end of figures -->\nb\n"
    assert report.filled(text) == text
    assert report.filled(text.replace(" ms", " s")) == text
    assert report.without_figures(text) == "a\n\nb\n"
    with pytest.raises(KeyError):
        report.filled("<!-- figures: none_such -->\n<!-- end of figures -->")
