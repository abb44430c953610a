"""Prompt files in every form, and what prompts are understood to ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascade_trt.evaluation.captions import Caption, read_captions, understand, write_captions
from cascade_trt.evaluation.judge import JudgeConfig
from cascade_trt.runtime.errors import CascadeError

COLOURS = {"white": (255, 255, 255), "pale blue": (205, 228, 250)}
CONFIG = JudgeConfig(("apple", "red apple", "cat"), ("noto", "fluent"), COLOURS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"prompt": "a cat", "file": "1.png"}\n\n{"prompt": "dog", "file": "2.png", "extra": 3}\n'),
        ("a.csv", "file,prompt\n1.png,a cat\n2.png,dog\n"),
    ],
)
def test_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = read_captions(tmp_path / name, with_files=True)
    assert found == [Caption("a cat", "1.png"), Caption("dog", "2.png")]
    write_captions(tmp_path / "again.jsonl", found)
    assert read_captions(tmp_path / "again.jsonl") == found


def test_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat\n\n  a dog \n")
    assert [caption.prompt for caption in read_captions(tmp_path / "a.txt")] == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.jsonl", '{"prompt": "a cat", "prompt": "a dog"}', "line 1 is wrong .it names an entry twice"),
        ("a.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", '{"prompt": "x", "file": "f"}\n{"file": "f"}', "line 2 has no `prompt`"),
        ("a.jsonl", '{"prompt": "x", "file": 3}', "`file` must be a text"),
        ("a.jsonl", '{"prompt": "x"}', "entry 1 names no image"),
        ("a.csv", "file,text\n1.png,cat\n", "line 2 has no `prompt`"),
        ("a.txt", "\n", "holds no prompts"),
    ],
)
def test_refusals(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CascadeError, match=said):
        read_captions(tmp_path / name, with_files=True)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CascadeError, match="cannot be read"):
        read_captions(tmp_path / "none.jsonl")


def test_labels_from_words() -> None:
    texts = ["A red apple, Noto style", "an apple on a pale blue background", "pineapple in style", "fluent cat"]
    found = understand([Caption(text) for text in texts], CONFIG)
    assert [c.concept for c in found] == ["red apple", "apple", None, "cat"]
    assert [c.style for c in found] == ["noto", None, None, None]
    assert [c.background for c in found] == [None, "pale blue", None, None]
    given = Caption("a cat", concept="apple")
    assert understand([given], CONFIG)[0].concept == "apple"
