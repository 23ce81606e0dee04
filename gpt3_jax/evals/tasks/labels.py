"""Labels of published rows, and what several entries do with their texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from gpt3_jax.evals.tasks import rows

_T = TypeVar("_T")
UNLABELLED = (None, "", -1, "-1")
"""What stands in the place of a label in test splits whose answers are kept back."""


def label(row: Mapping[str, Any], field: str, where: str, known: Mapping[Any, _T]) -> _T | None:
    """What a row's label stands for; None for a row without one. Raises UserError for a label that is not known."""
    value = row.get(field)
    if value is None or (not isinstance(value, bool) and value in UNLABELLED):
        return None
    return rows.one_of(row, field, where, known)


def detokenised(text: str) -> str:
    """A text without the spaces that a tokenizer put before punctuation and clitics: "Edward 's hat ." is "Edward's
    hat."."""
    return re.sub(r"\s+(?=(?:[.,;:?!]|'(?:s|d|m|re|ve|ll)\b|'(?=\s|$)|n't\b))", "", text)


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
