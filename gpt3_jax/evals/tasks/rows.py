"""Reads task files of JSON lines, plain or compressed, and names file, line and field of what is wrong in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from gpt3_jax.data.compressed import SUFFIXES, chunks
from gpt3_jax.data.files import kind_by_magic
from gpt3_jax.errors import UserError

_CHUNK = 1 << 20


def read_text(path: str) -> str:
    """The whole file as text, decompressed if its name ends in .gz or .zst, without a byte-order mark.

    Raises:
        UserError: it is not there, not UTF-8, or compressed without a name that says so.
        RunError: it cannot be read, or is truncated.
    """
    data = b"".join(part for part, _ in chunks(path, 0, _CHUNK))
    kind = kind_by_magic(data[:16])
    if kind is not None:
        hint = f"; name it {path}{SUFFIXES[0]}" if kind == "gzip" else ""
        raise UserError(f"{path} is {kind}; expected UTF-8 text{hint}")
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line} is not UTF-8 text (byte {error.start}); convert it") from None


def rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file with their place, ``FILE, line N``. Empty lines are skipped.

    Raises:
        UserError: as `read_text`; a line is no JSON object; there is none.
        RunError: as `read_text`.
    """
    empty = True
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise UserError(f"{where} is not JSON ({what}): {_short(line)}; expected one object a line") from None
        if not isinstance(row, dict):
            raise UserError(f"{where} is {_kind(row)}; expected an object: {_short(line)}")
        empty = False
        yield where, row
    if empty:
        raise UserError(f"{path} is empty; expected one JSON object a line")


def text(row: dict[str, Any], field: str, where: str) -> str:
    """A field that must be a text with something in it."""
    value = required(row, field, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: {field!r} is {_kind(value)}; expected text")
    if not value.strip():
        raise UserError(f"{where}: {field!r} is empty; expected text")
    return value


def texts(value: Any, field: str, where: str, count: tuple[int, int]) -> tuple[str, ...]:
    """A value that must be a list of `count` (least, most) texts."""
    least, most = count
    some = str(least) if least == most else f"{least} to {most}"
    if not isinstance(value, list):
        raise UserError(f"{where}: {field!r} is {_kind(value)}; expected a list of {some} texts")
    if not least <= len(value) <= most:
        raise UserError(f"{where}: {field!r} has {len(value)} entries; expected {some}")
    for each in value:
        if not isinstance(each, str) or not each.strip():
            raise UserError(f"{where}: {field!r} holds {_short(json.dumps(each))}; expected texts")
    return tuple(value)


def required(row: dict[str, Any], field: str, where: str) -> Any:
    """A field that must be there."""
    if field not in row:
        there = f"it has {', '.join(map(repr, list(row)[:6]))}" if row else "the object is empty"
        raise UserError(f"{where}: {field!r} is missing; {there}")
    return row[field]


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return kinds[type(value)]


def _short(line: str) -> str:
    line = line.strip()
    return line if len(line) <= 60 else f"{line[:57]}..."
