"""What a prompt becomes for the text encoder, and what is said of what it cannot become."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import save_text_encoder

from cascade_trt.runtime.bundle import TextInfo
from cascade_trt.runtime.errors import CascadeError
from cascade_trt.runtime.prompts import PromptEncoder


def encoder(folder: Path, clean: bool = True) -> PromptEncoder:
    """Knows a, red, apple and cat; reads six tokens."""
    return PromptEncoder(save_text_encoder(folder / "encoder", 16), TextInfo("tokenizer.json", 6, 0, clean))


def test_each_prompt_has_its_own_warnings(tmp_path: Path) -> None:
    encoded = encoder(tmp_path).encode(["a red apple", "a red 一只猫 R2D2 яблоко", "a cat a cat a cat"])
    assert encoded.ids.tolist() == [[0, 0, 3, 4, 5, 1], [0, 0, 3, 4, 2, 1], [3, 6, 3, 6, 3, 1]]
    assert encoded.mask.tolist()[0] == [False, False, True, True, True, True]
    assert encoded.warnings == [
        (),
        (
            "prompt 2: the model's rules for captions removed '一只猫', 'r2d2'.",
            "prompt 2: the text encoder does not know 'яблоко', so the image cannot show it.",
        ),
        ("prompt 3 has 7 tokens, the model reads 6: the rest was cut.",),
    ]


@pytest.mark.parametrize(
    ("prompt", "named"),
    [("一只猫", "'一只猫'"), ("https://a.com/b R2D2", "'https://a.com/b', 'r2d2'"), ("512x512", "'512x512'"),
     ("(***)", "'(***)'")],
)  # fmt: skip
def test_a_prompt_of_which_nothing_is_left(tmp_path: Path, prompt: str, named: str) -> None:
    with pytest.raises(CascadeError) as caught:
        encoder(tmp_path).encode(["a cat", prompt])
    assert str(caught.value).startswith("nothing of prompt 2 is left: the model's rules for captions remove")
    assert named in str(caught.value) and "empty" not in str(caught.value)


def test_without_rules_for_captions_nothing_goes(tmp_path: Path) -> None:
    encoded = encoder(tmp_path, clean=False).encode(["a cat R2D2"])
    assert encoded.warnings == [("prompt 1: the text encoder does not know 'R2D2', so the image cannot show it.",)]


def test_a_prompt_without_a_token(tmp_path: Path) -> None:
    made = encoder(tmp_path, clean=False)
    made._tokenizer.normalizer = __import__("tokenizers").normalizers.Replace("\u200b", "")
    with pytest.raises(CascadeError, match="nothing of prompt 1 is left: the text encoder has no tokens"):
        made.encode(["\u200b"])


def test_many_words_are_counted(tmp_path: Path) -> None:
    codes = " ".join(f"ab{number}cd" for number in range(40))
    said = encoder(tmp_path).encode([f"a cat {codes} {'猫' * 3000}"]).warnings[0][0]
    assert "and 36 more" in said and len(said) < 250 and "\n" not in said
