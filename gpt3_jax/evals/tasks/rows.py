"""Reads task files (JSON lines, JSON, CSV, XML, text, Arrow), and names place and field of what is wrong in them.

A place is written ``FILE, line N`` or ``FILE, row N``.
"""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from gpt3_jax.data import tables
from gpt3_jax.data.compressed import SUFFIXES, chunks
from gpt3_jax.data.files import kind_by_magic
from gpt3_jax.errors import UserError

Row = tuple[str, dict[str, Any]]
"""A place, and the fields that stand there."""
_T = TypeVar("_T")

_CHUNK = 1 << 20


def plain_name(path: str) -> str:
    """The name in lower case without the ending of a compressed file."""
    lower = path.lower()
    return next((lower.removesuffix(suffix) for suffix in SUFFIXES if lower.endswith(suffix)), lower)


def _read(path: str, lines: int | None = None) -> bytes:
    if lines is None:
        return b"".join(part for part, _ in chunks(path, 0, _CHUNK))
    parts, left = [], lines
    for part, _ in chunks(path, 0, _CHUNK):
        if (here := part.count(b"\n")) >= left:
            parts += [line + b"\n" for line in part.split(b"\n", left)[:left]]
            break
        parts.append(part)
        left -= here
    return b"".join(parts)


def read_text(path: str, lines: int | None = None) -> str:
    """The file as text, decompressed if its name ends in .gz or .zst, without a byte-order mark.

    Args:
        lines: the first so many are read; None: all.

    Raises:
        UserError: it is not there, not UTF-8, or compressed without a name that says so.
        RunError: it cannot be read, or is truncated.
    """
    data = _read(path, lines)
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
    yield from _lines_of_json(path, read_text(path))


def _lines_of_json(path: str, text: str) -> Iterator[Row]:
    empty = True
    for number, line in enumerate(text.split("\n"), start=1):
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


def objects(path: str) -> Iterator[Row]:
    """The rows of a file by its ending: .parquet and .arrow, .csv and .tsv with a head line, .json with one list of
    objects or one object, or JSON lines (any other ending, and .json too).

    Raises the errors of `rows`, `document`, `table` and `tables.rows`.
    """
    name = plain_name(path)
    if name.endswith((".parquet", ".arrow")):
        for number, row in enumerate(tables.rows(path)):
            yield f"{path}, row {number}", row
    elif name.endswith((".csv", ".tsv")):
        yield from table(path, "\t" if name.endswith(".tsv") else ",")
    elif name.endswith(".json"):
        text = read_text(path)
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data" or "\n" in text[: error.pos].strip():
                raise _no_document(path, error) from None
            yield from _lines_of_json(path, text)  # the first value is a line of its own
            return
        except (ValueError, RecursionError) as error:
            raise _no_document(path, error) from None
        for number, row in enumerate(found if isinstance(found, list) else [found]):
            if not isinstance(row, dict):
                raise UserError(f"{path}, item {number} is {_kind(row)}; expected an object")
            yield f"{path}, item {number}", row
    else:
        yield from rows(path)


def document(path: str) -> Any:
    """A file that is one JSON value. Raises the errors of `read_text`; UserError if it is not JSON."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise _no_document(path, error) from None


def _no_document(path: str, error: Exception) -> UserError:
    if isinstance(error, json.JSONDecodeError):
        return UserError(f"{path}, line {error.lineno} is not JSON ({error.msg}); fetch it again")
    return UserError(f"{path} is not JSON ({type(error).__name__}); fetch it again")


def lines(path: str, most: int | None = None) -> list[tuple[str, str]]:
    """The lines of a text, or the first `most` of them, with their places; an empty line is an empty text, the end of
    the last line is none."""
    found = read_text(path, most).replace("\r\n", "\n").split("\n")
    if found and not found[-1]:
        found.pop()
    if not found:
        raise UserError(f"{path} is empty; expected lines of text")
    return [(f"{path}, line {number}", line) for number, line in enumerate(found, start=1)]


def table(path: str, delimiter: str = ",") -> Iterator[Row]:
    """The rows of a CSV file by the names in its first line. Raises the errors of `read_text`; UserError for a row of
    another length than the first, or none."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        head = next(reader, None)
        if not head:
            raise UserError(f"{path} is empty; expected a line of column names")
        empty = True
        for values in reader:
            if not values:
                continue
            where = f"{path}, line {reader.line_num}"
            if len(values) != len(head):
                raise UserError(f"{where} has {len(values)} fields; expected {len(head)}, as in the first line")
            empty = False
            yield where, dict(zip(head, values, strict=True))
        if empty:
            raise UserError(f"{path} has no row below its column names; fetch it again")
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num} is not CSV ({error}); fetch it again") from None


def xml_root(path: str) -> xml.etree.ElementTree.Element:
    """The root of an XML file, in the encoding that it declares. Raises UserError if it is not XML."""
    try:
        return xml.etree.ElementTree.fromstring(_read(path))
    except xml.etree.ElementTree.ParseError as error:
        raise UserError(f"{path}, line {error.position[0]} is not XML ({error}); fetch it again") from None
    except (ValueError, LookupError) as error:
        raise UserError(f"{path} is not XML ({error}); fetch it again") from None


def text(row: Mapping[str, Any], field: str, where: str, empty: bool = False) -> str:
    """A field that must be a text; with something in it, unless `empty`."""
    value = required(row, field, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: {field!r} is {_kind(value)}; expected text")
    if not value.strip() and not empty:
        raise UserError(f"{where}: {field!r} is empty; expected text")
    _require_characters(value, field, where)
    return value


def one_of(row: Mapping[str, Any], field: str, where: str, known: Mapping[Any, _T]) -> _T:
    """A field whose value is a key of `known`: what that stands for. 1 and true are the same key, "1" is another."""
    value = required(row, field, where)
    if isinstance(value, (str, int, float)) and value in known:
        return known[value]
    raise UserError(f"{where}: {field!r} is {_short(repr(value))}; expected one of {', '.join(map(repr, known))}")


def number(row: Mapping[str, Any], field: str, where: str, least: int, most: int) -> int:
    """A field that is a whole number from `least` to `most`."""
    value = required(row, field, where)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(f"{where}: {field!r} is {_short(repr(value))}; expected a number from {least} to {most}")
    return value


def objects_in(row: Mapping[str, Any], field: str, where: str) -> list[Row]:
    """A field that is a list of objects, each with its place."""
    value = list_in(row, field, where, "objects")
    for index, each in enumerate(value):
        if not isinstance(each, dict):
            raise UserError(f"{where}: {field!r}[{index}] is {_kind(each)}; expected an object")
    return [(f"{where}, {field}[{index}]", each) for index, each in enumerate(value)]


def object_in(row: Mapping[str, Any], field: str, where: str) -> Row:
    """A field that is an object, with its place."""
    value = required(row, field, where)
    if not isinstance(value, dict):
        raise UserError(f"{where}: {field!r} is {_kind(value)}; expected an object")
    return f"{where}, {field}", value


def list_in(row: Mapping[str, Any], field: str, where: str, of: str = "") -> list[Any]:
    """A field that is a list, of what the error calls `of`."""
    value = required(row, field, where)
    if not isinstance(value, list):
        raise UserError(f"{where}: {field!r} is {_kind(value)}; expected a list{f' of {of}' if of else ''}")
    return value


def texts(value: Any, field: str, where: str, count: tuple[int, int], empty: bool = False) -> tuple[str, ...]:
    """A value that must be a list of `count` (least, most) texts; with something in each, unless `empty`."""
    least, most = count
    some = str(least) if least == most else f"{least} to {most}"
    if not isinstance(value, list):
        raise UserError(f"{where}: {field!r} is {_kind(value)}; expected a list of {some} texts")
    if not least <= len(value) <= most:
        raise UserError(f"{where}: {field!r} has {len(value)} entries; expected {some}")
    for each in value:
        if not isinstance(each, str) or not (empty or each.strip()):
            raise UserError(f"{where}: {field!r} holds {_short(json.dumps(each))}; expected texts")
        _require_characters(each, field, where)
    return tuple(value)


def _require_characters(value: str, field: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = value[error.start]
        raise UserError(
            f"{where}: {field!r} has half a character, {found!a}; write the other half, or neither"
        ) from None


def required(row: Mapping[str, Any], field: str, where: str) -> Any:
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
    return kinds.get(type(value), type(value).__name__)


def _short(line: str) -> str:
    line = line.strip()
    return line if len(line) <= 60 else f"{line[:57]}..."
