"""Captions: the concept's name with article, style, background and synonyms, varied the way people write."""

from __future__ import annotations

import random
import re

from .data import Emoji

# Backgrounds by name, as RGB. White is the default and is seldom named.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "pale blue": (205, 228, 250),
    "pale green": (210, 240, 210),
    "pale yellow": (255, 246, 200),
    "pink": (255, 214, 226),
    "light gray": (222, 222, 222),
    "lavender": (226, 216, 246),
    "black": (24, 24, 24),
}


def caption(image: Emoji, background: str, rng: random.Random) -> str:
    """One caption of an image on a background; about a third name the style, most of the others do not."""
    subject = image.concept
    if image.tags and rng.random() < 0.1:
        subject = f"{rng.choice(image.tags)}, {subject}"  # a synonym beside the name, never instead of it
    text = rng.choice(["{}", "a {}", "a {}", "the {}", "an emoji of a {}", "a drawing of a {}"]).format(subject)
    if text.startswith("a ") and text[2:3] in "aeiou":
        text = "an " + text[2:]
    on = f" on a {background} background"
    if background != "white" or rng.random() < 0.15:
        text += on
    if rng.random() < 0.35:
        text += f", {image.style} style"
    return text


def words(text: str) -> list[str]:
    """Lower-case words and punctuation marks of a caption."""
    return re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower())
