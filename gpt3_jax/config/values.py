"""Converts values to the types of their settings, from text (files, command line) or from JSON and Python values."""

from __future__ import annotations

import dataclasses
import decimal
import math
import re
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gpt3_jax.errors import UserError

_NUMBER = re.compile(r"[+-]?(\d+(_\d+)*(\.(\d+(_\d+)*)?)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER_LIMIT = 2**63

Naming = Callable[[str], str]
"""Maps a dotted name to how the source spells it: ``--train.tokens``, ``train.tokens in 'my.yaml'``."""


def convert(value: Any, hint: Any, name: str, naming: Naming) -> Any:
    """Converts a value to the type of its setting.

    Integers may be written ``3e9``, ``300_000`` or ``3.0``. Numbers must be finite. Booleans are ``true`` or ``false``
    only. Lists become tuples.

    Raises:
        UserError: the value is not of the setting's type.
    """
    if value is None:
        raise UserError(f"{naming(name)} is null; expected {expected(hint)} (leave the key out for its default)")
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        item = get_args(hint)[0]
        return tuple(convert(part, item, f"{name}[{i}]", naming) for i, part in enumerate(value))
    if dataclasses.is_dataclass(hint) and isinstance(value, hint if isinstance(hint, type) else ()):
        return value
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _record(value, hint, name, naming)
    found = _scalar(value, hint) if not isinstance(value, dict | list | tuple) else None
    if found is None:
        shown = "empty" if value == "" else repr(value)
        cut = shown if len(shown) <= 100 else f"{shown[:80]}…"
        raise UserError(f"{naming(name)} is {cut}; expected {expected(hint)}")
    return found


def expected(hint: Any) -> str:
    """The type of a setting, in words."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return "a list such as " + (
            f"[{', '.join(get_args(item))}]" if get_origin(item) is Literal else f"[{_EXAMPLE}]"
        )
    if dataclasses.is_dataclass(hint):
        return f"e.g. {_EXAMPLE}"
    return _WORDS[hint]


_WORDS = {
    int: "a whole number below 2^63, such as 300, 3e9 or 3_000_000",
    float: "a finite number",
    bool: "true or false",
    str: "text",
}
_EXAMPLE = "{path: FOLDER, weight: 1.0}"


def types_of(cls: Any) -> dict[str, Any]:
    """The types of a section's settings, by name."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _record(value: dict[str, Any], cls: Any, name: str, naming: Naming) -> Any:
    hints = types_of(cls)
    for key in value:
        if key not in hints:
            raise UserError(f"unknown key {naming(f'{name}.{key}')}; the keys are {', '.join(hints)}")
    missing = [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.name not in value
    ]
    if missing:
        raise UserError(f"{naming(name)} has no {missing[0]}; expected {expected(cls)}")
    return cls(**{key: convert(item, hints[key], f"{name}.{key}", naming) for key, item in value.items()})


def _scalar(value: Any, hint: Any) -> Any:
    """The converted value; None if it is not of this type."""
    if get_origin(hint) is Literal:
        options = get_args(hint)
        if isinstance(options[0], int) and not re.fullmatch(r"\d+", str(value)):
            return None  # a choice is a name, also where it is a number: 3.0 is none of 0, 1, 2, 3
        found = _scalar(value, type(options[0]))
        return found if found in options else None
    if hint is bool:
        return value if isinstance(value, bool) else {"true": True, "false": False}.get(str(value).lower())
    if hint is str:
        return value if isinstance(value, str) else None
    return None if isinstance(value, bool) else _number(value, hint)


def _number(value: Any, hint: Any) -> int | float | None:
    """Exact for integers: 2**53 + 1 has no float."""
    text = str(value)
    if not _NUMBER.fullmatch(text):
        return None
    if hint is float:
        number = float(text)
        return number if math.isfinite(number) else None
    if re.match(r"[+-]?0\d", text):  # octal in YAML 1.1, decimal in 1.2
        return None
    try:
        exact = decimal.Decimal(text)
    except decimal.InvalidOperation:  # an exponent that decimal cannot hold
        return None
    if exact.is_zero():
        return 0
    if exact.adjusted() > 18 or exact != exact.to_integral_value():
        return None
    whole = int(exact)
    return whole if -_INTEGER_LIMIT <= whole < _INTEGER_LIMIT else None
