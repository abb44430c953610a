"""Captions in the form that LlamaGen's text encoder was given while it was trained.

LlamaGen cleans a prompt twice by DeepFloyd's rules, which were made for captions from the web: links, file names,
article codes and shop talk go, brackets and other marks become spaces, dashes and quotes take one form. A prompt that
is cleaned otherwise is cut into other tokens, so the rules are followed here, odd ones included ("h2o" counts as a
code). Two things are simpler: links go whole, and so do tags, while misread encodings stay as they are.

Time grows with the length of the text: a pattern that looks ahead without a limit begins at one place of a run only.
"""

from __future__ import annotations

import html
import re
import unicodedata
from itertools import groupby, islice
from urllib.parse import unquote_plus

_DASHES = "‐‑‒–—―֊־᐀᠆⸗⸚⸺⸻⹀〜〰゠︱︲﹘﹣－"
_ONE_FORM = str.maketrans(dict.fromkeys(_DASHES, "-") | dict.fromkeys("`´«»“”¨", '"') | dict.fromkeys("‘’", "'"))
_MARKS = str.maketrans(dict.fromkeys("#®•©™&@·º½¾¿¡§~()[]{}|\\/*", " "))

_SITE = r"[\w.-]+\.(?:com?|ru|net|org|edu|gov|it)\b[\w/-]*"
_LINK = re.compile(rf"\bhttps?://\S+|\bwww\.\S+|(?<![\w.-])[.-]*+\b(?:{_SITE})+")
_TAG = re.compile(r"</?[a-z!][^>]*>")
_HANDLE = re.compile(r"@\w+")
_IDEOGRAPHS = re.compile(r"[\u31c0-\u9fff]+")  # Chinese, Japanese and Korean; kana stay
_NUMBER = re.compile(r"(?<!\d)\d++(?:\.\d++){3}|#\d{1,3}\b|#\d{5,}|\b\d{6,}\b")  # addresses, article and phone numbers
_FILE_TYPES = "(?:png|jpe?g|bmp|webp|eps|pdf|apk|mp4)"
_FILE = re.compile(rf"(?<!\S)\S+\.{_FILE_TYPES}")
_SHOP_TALK = re.compile(
    r"(?:worldwide\s+)?(?:free\s+)?shipping|(?:free\s)?download(?:\sfree)?|\bclick (?:for|on) \w+|\bpage\s+\d+\b"
    rf"|\b{_FILE_TYPES}(?: images?)?|\b[\d.]{{1,20}}×[\d.]+\b"
)
_LONG_REFERENCE = re.compile(r"(?<=&#)[0-9]{600,}")  # Python reads no number of any length; no letter has such a one
_MOST_MARKS = 30  # on one letter; Unicode's own limit for texts that are normalised in bounded time
_WORD = re.compile(r"\w+")
_LONE_SUFFIX = re.compile(r"\A\.\S+\Z")


def clean_caption(text: str, removed: list[str] | None = None) -> str:
    """The caption after both passes; empty where nothing of it is a description. The words that go are added to
    `removed`."""
    removed = [] if removed is None else removed
    return _once(_once(text, removed), removed)


def _once(text: str, removed: list[str]) -> str:
    text = _without_web(unquote_plus(text).strip().lower(), removed)
    text = _one_form(text, removed)
    if text.count("-") + text.count("_") > 3:  # this-is-a-file-name
        text = text.replace("-", " ").replace("_", " ")
    text = _without(_SHOP_TALK, _without_codes(text.strip(), removed), removed)
    return _trimmed(_spaced(text), removed)


def _without(pattern: re.Pattern[str], text: str, removed: list[str]) -> str:
    removed += (found[0] for found in pattern.finditer(text))
    return pattern.sub("", text)


def _without_web(text: str, removed: list[str]) -> str:
    """Without links, tags, handles and ideographs."""
    text = _without(_LINK, text.replace("<person>", "person"), removed)
    closed = text.rfind(">") + 1  # no tag begins behind it
    text = _without(_TAG, text[:closed], removed) + text[closed:]
    text = html.unescape(_LONG_REFERENCE.sub("9999999", text))
    return _without(_IDEOGRAPHS, _without(_HANDLE, text, removed), removed)


def _one_form(text: str, removed: list[str]) -> str:
    """One kind of dash and of quote; no numbers of articles, files, runs of dots, brackets and the like."""
    text = re.sub("-+", "-", unicodedata.normalize("NFC", _few_marks(text)).translate(_ONE_FORM))
    text = _without(_FILE, _without(_NUMBER, text, removed), removed)
    text = re.sub(r"\.{2,}", " ", re.sub("[\"']{2,}", '"', text)).translate(_MARKS)
    return re.sub(r"(?<!\s)\s+\.\s+", " ", text)


def _few_marks(text: str) -> str:
    """With at most 30 accents in a row: putting them into order takes time that grows with the square of the run."""
    if text.isascii():
        return text
    runs = groupby(text, lambda letter: unicodedata.combining(letter) > 0)
    return "".join(letter for marks, run in runs for letter in (islice(run, _MOST_MARKS) if marks else run))


def _without_codes(text: str, removed: list[str]) -> str:
    removed += filter(is_code, _WORD.findall(text))
    return _WORD.sub(lambda word: "" if is_code(word[0]) else word[0], text)


def is_code(word: str) -> bool:
    """Whether a word is taken for an article code: jc6640, jc66vc, 66vc231, 512x512."""
    kinds = [(kind, len(list(letters))) for kind, letters in groupby(word, _kind)]
    pattern = "".join(kind for kind, _ in kinds)
    if pattern == "ad":
        return kinds[0][1] <= 3 and 3 <= kinds[1][1] <= 15
    return "?" not in pattern and (pattern in ("ada", "dad") or "adad" in pattern)


def _kind(letter: str) -> str:
    if letter.isdigit():
        return "d"
    return "a" if letter in "abcdefghijklmnopqrstuvwxyz" else "?"


def _spaced(text: str) -> str:
    """Commas, dots and colons with a space behind and none before; no other white space than single spaces."""
    text = re.sub(r"(?<=\w)\s+:\s+", ": ", text)
    return re.sub(r"\s+", " ", re.sub(r"(?<=\D[,.])(?=\w)", " ", text))


def _trimmed(text: str, removed: list[str]) -> str:
    """Without quotes around the whole, or a lone mark at either end."""
    if len(text) > 2 and text[0] in "\"'" and text[-1] in "\"'":
        text = text[1:-1]
    if text[:1] in tuple("'_,-:;"):
        text = text[1:]
    if text[-1:] in tuple("'_,-:+"):
        text = text[:-1]
    return _without(_LONE_SUFFIX, text, removed).strip()
