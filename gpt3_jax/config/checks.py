"""Checks of a section of settings that is constructed in Python. Files and options are checked when they are read."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args, get_origin

from gpt3_jax.config.values import expected, types_of
from gpt3_jax.errors import UserError


def require(ok: bool, message: str) -> None:
    """Raises a UserError with this message if not `ok`."""
    if not ok:
        raise UserError(message)


def require_finite(section: Any, prefix: str) -> None:
    """Refuses infinity and NaN."""
    for name, value in vars(section).items():
        require(not isinstance(value, float) or math.isfinite(value), f"{prefix}.{name} is {value}; expected a number")


def require_choices(section: Any, prefix: str) -> None:
    """Refuses what is none of the values of a setting that names them."""
    cls = type(section)
    if cls not in _CHOICES:
        _CHOICES[cls] = {name: hint for name, hint in types_of(cls).items() if get_origin(hint) is Literal}
    for name, hint in _CHOICES[cls].items():
        value = getattr(section, name)
        require(value in get_args(hint), f"{prefix}.{name} is {value!r}; expected {expected(hint)}")


_CHOICES: dict[type[Any], dict[str, Any]] = {}
"""The types of such settings, by section: a search constructs a section thousands of times."""
