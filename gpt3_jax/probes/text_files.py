"""Reads a user's files line by line; a mistake in one is one line that names file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt3_jax.data.files import kind_by_magic, read_errors, regular
from gpt3_jax.errors import UserError


def read(path: str | Path) -> str:
    """A file's text, without a byte order mark.

    Raises:
        UserError: the file is not there, is no regular file, or is not UTF-8.
        RunError: it cannot be read.
    """
    regular(path)
    with read_errors(path):
        content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = kind_by_magic(content)
        what = f"it looks like {kind}" if kind else f"byte {error.start} is {content[error.start]:#04x}"
        raise UserError(f"{path} is not UTF-8 text: {what}; convert it") from None


def lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, each with its number from 1. Raises as `read`."""
    for number, line in enumerate(read(path).replace("\r\n", "\n").split("\n"), start=1):
        if line.strip():
            yield number, line


def json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its place, "FILE, line 3". Raises UserError, as `read`."""
    for number, line in lines(path):
        where = f"{path}, line {number}"
        yield where, parse_object(line, where)


def parse_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object. Raises UserError for text that is none."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise UserError(f"{where} is not JSON ({why}); expected an object, {{...}}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where} is a JSON {type(row).__name__}; expected an object, {{...}}")
    return row


def text_of(row: dict[str, Any], key: str, where: str) -> str:
    """The text under a key, without white space around it. Raises UserError if there is none."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        found = "is missing" if key not in row else f"is {json.dumps(value)[:60]}"
        raise UserError(f"{where}: {key!r} {found}; expected text")
    return value.strip()
