"""Prompts are cleaned as LlamaGen cleans them: what its own code made of these, twice over."""

from __future__ import annotations

import time

import pytest

from cascade_trt.runtime.captions import clean_caption, is_code

CLEANED = {
    "a red apple": "a red apple",
    "A photo of a red apple on a wooden table.": "a photo of a red apple on a wooden table.",
    "A Cat (orange), sitting on a mat; 8k, f/1.8, 50mm lens": "a cat orange , sitting on a mat; 8k, f 1.8, 50mm lens",
    "portrait of a woman — soft light, \"golden hour\"": "portrait of a woman - soft light, \"golden hour\"",
    "\"a dog\"": "a dog",
    "'a dog'": "a dog",
    "It's a dog’s life": "it's a dog's life",
    "a state-of-the-art, hand-made, one-of-a-kind vase": "a state of the art, hand made, one of a kind vase",
    "a black-and-white photo": "a black-and-white photo",
    "red/blue gradient & green [detailed] {masterpiece}": "red blue gradient green detailed masterpiece",
    "a robot, 4k, highly detailed, trending on artstation...": "a robot, 4k, highly detailed, trending on artstation",
    "3d render of a house . isometric view": "3d render of a house isometric view",
    "a glass of h2o": "a glass of",
    "r2d2 and c3po in the desert": "and in the desert",
    "512x512 pixel art of a castle": "pixel art of a castle",
    "the number 1234567 on a door": "the number on a door",
    "article jc6640 in the shop": "article in the shop",
    "free shipping worldwide on shoes": "worldwide on shoes",
    "click for more: a picture of a shoe": "a picture of a shoe",
    "page 12 of a book": "of a book",
    "photo.jpg of a dog": "of a dog",
    "a jpg image of a dog": "a of a dog",
    "see https://example.com/a/b for a dog": "see for a dog",
    "www.example.com a dog": "a dog",
    "email me @someone a dog": "email me a dog",
    "#5 on the shirt, #hashtag": "on the shirt, hashtag",
    "50% off, 10,000 people, 3.5 stars": "50% off, 10,000 people, 3.5 stars",
    "a+b=c": "a b=c",
    "100%20sure": "100 sure",
    "hello,world.this is": "hello, world. this is",
    "title : subtitle": "title: subtitle",
    "<b>bold</b> text &amp; more": "bold text more",
    "“curly quotes” and ‘single ones’": "curly quotes\" and 'single ones",
    "ein Mädchen mit café au lait": "ein mädchen mit café au lait",
    "一只猫 a cat": "a cat",
    "カナ text": "カナ text",
    "emoji 🍎 apple": "emoji 🍎 apple",
    "  spaces   everywhere": "spaces everywhere",
    "-a dash first": "a dash first",
    "ends with a dash -": "ends with a dash",
    "ends with colon:": "ends with colon",
    "*** SALE *** now!": "sale now!",
    "a?! what": "a?! what",
    "this_is_my_cute_cat": "this is my cute cat",
    "a 2×3 grid": "a grid",
    "iphone12 and gpt4": "iphone12 and gpt4",
    "A.I. robot, U.S. flag": "a. i. robot, u. s. flag",
    "no.5 perfume": "no. 5 perfume",
    "ratio 16:9": "ratio 16:9",
}


@pytest.mark.parametrize("prompt", CLEANED)
def test_as_the_original(prompt: str) -> None:
    assert clean_caption(prompt) == CLEANED[prompt]


@pytest.mark.parametrize("prompt", [prompt for prompt, cleaned in CLEANED.items() if prompt.lower() == cleaned])
def test_plain_words_stay(prompt: str) -> None:
    assert clean_caption(prompt.upper()) == prompt.lower()


@pytest.mark.parametrize(
    ("word", "code"),
    [("jc6640", True), ("jc66vc", True), ("66vc231", True), ("4k", False), ("50mm", False), ("mp3", False)],
)
def test_article_codes(word: str, code: bool) -> None:
    assert is_code(word) == code


def test_nothing_left() -> None:
    assert clean_caption("<br> https://example.com/a.png @me (***)") == ""


@pytest.mark.parametrize(
    ("prompt", "removed"),
    [
        ("a red apple (ripe), 50mm", []),
        ("see https://example.com/a/b for a dog", ["https://example.com/a/b"]),
        ("<lora:style:1> a cat by @someone", ["<lora:style:1>", "@someone"]),
        ("一只猫 a cat", ["一只猫"]),
        ("R2D2, 512x512, photo.jpg", ["photo.jpg", "r2d2", "512x512"]),
        ("the number 1234567, free shipping", ["1234567", "free shipping"]),
        (".hidden", [".hidden"]),
    ],
)
def test_what_goes_is_told(prompt: str, removed: list[str]) -> None:
    found: list[str] = []
    clean_caption(prompt, found)
    assert [word.strip() for word in found] == removed


LONG = ["a", "a1", "a.", "a-", "a.a-", ".", "1", "1.", "1.1.1 ", "<a", "<a ", "a.co-", "a.com/", "www.", "http://",
        "@a", "1×", "1.×", " ", ". ", " : ", "free ", "page 1", ".png", "#1", "'", "\u0323\u0301", "é", "一", "&amp;",
        "%4", "data:image/png;base64,iVBORw0KGgoAAAANSUhEUg"]  # fmt: skip


@pytest.mark.parametrize("around", ["{}", "<{}>", "x {}.com", "&#{};"])
def test_time_grows_with_the_length(around: str) -> None:
    """A pattern that tries every pair of places needs minutes for any of these; all together take a second."""
    started = time.process_time()
    for part in LONG:
        clean_caption(around.format(part * (50_000 // len(part))))
    assert time.process_time() - started < 30


def test_a_reference_to_no_letter() -> None:
    assert clean_caption(f"a &#{'9' * 5000}; cat") == "a \ufffd cat"
