"""Published texts as people write them."""

from __future__ import annotations

import re

_RULES = (
    (r"(?<=s) +'(?=\s|$)", "'"),  # the possessive of a plural
    (r" +(?=(?:[.,;:?!%)\]}]|'(?:s|d|m|re|ve|ll)\b|n't\b)(?:\s|$|[.,;:?!'\"]))", ""),
)


def rejoined(text: str) -> str:
    """A text without the spaces that a tokenizer put before punctuation and clitics: "Edward 's hat ." is "Edward's
    hat."."""
    for pattern, by in _RULES:
        text = re.sub(pattern, by, text)
    return text


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
