"""Labels of published rows."""

from __future__ import annotations

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
