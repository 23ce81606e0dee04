"""Formats the settings as command-line help: each option with its text, default and source in the paper."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from gpt3_jax.config.schema import Config
from gpt3_jax.config.setting import Meaning, meaning, sections
from gpt3_jax.config.values import types_of

_INDENT = 24


def field_texts() -> dict[tuple[str, str], str]:
    """The docstring of each field of the classes in the sections' modules, by (class, field)."""
    found = {}
    modules = dict.fromkeys(cls.__module__ for cls in sections(Config).values())
    for cls in (node for name in modules for node in ast.parse(inspect.getsource(sys.modules[name])).body):
        if isinstance(cls, ast.ClassDef):
            for field, after in zip(cls.body, cls.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    text = after.value.value if _is_text(after) else ""  # type: ignore[attr-defined]
                    found[cls.name, field.target.id] = " ".join(text.split())
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def options_help(width: int) -> str:
    """All options, section by section, wrapped to `width` columns."""
    texts = field_texts()
    lines: list[str] = []
    for section, cls in sections(Config).items():
        lines += ["", *textwrap.wrap(" ".join((cls.__doc__ or "").split()).rstrip(".") + ":", width)]
        hints = types_of(cls)
        for field in dataclasses.fields(cls):
            option = f"--{section}.{field.name} {_placeholder(hints[field.name])}"
            lines += entry(option, texts[cls.__name__, field.name], _default(field.default, meaning(field)), width)
    return "\n".join(lines)


def entry(option: str, text: str, default: str, width: int) -> Iterator[str]:
    """The lines of one option. An empty `default` gives no default line."""
    indent = " " * _INDENT
    head, body = f"  {option}", textwrap.wrap(text, width - _INDENT) or [""]
    if len(head) < _INDENT - 1:
        yield head.ljust(_INDENT) + body.pop(0)
    else:
        yield head
    yield from (indent + line for line in body)
    yield from textwrap.wrap(default, width, initial_indent=indent, subsequent_indent=indent)


def _placeholder(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"{{{','.join(map(str, get_args(hint)))}}}"
    if get_origin(hint) is tuple:
        return "[ITEM,...]"
    return {int: "N", float: "X", bool: "{true,false}", str: "TEXT"}[hint]


def _default(value: Any, meaning: Meaning) -> str:
    if isinstance(value, bool):
        shown = str(value).lower()
    elif isinstance(value, tuple):
        shown = f"[{', '.join(map(str, value))}]"
    else:
        shown = f"{value:_}" if isinstance(value, int) and value >= 10_000 else str(value) or "none"
    return f"default: {shown}" + (f" ({meaning.paper.source})" if meaning.paper else "")
