"""Parses the documents of a block: plain text, or the text in JSON objects and Parquet rows."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from typing import NoReturn

from gpt3_jax.data.documents import MAX_RECORD_BYTES, TOO_LONG, BadDocument, Block, Options
from gpt3_jax.data.files import kind_by_magic

_HEAD = 4096


@dataclasses.dataclass(frozen=True)
class Document:
    """A document of a block, not parsed yet."""

    where: str
    """File and line, text or row. Lines and texts count from 1, rows from 0 as in Parquet readers."""
    record: int
    """The number in `where`; 1 for a file that is one text."""
    text: Callable[[], str]
    """Returns the text, which may be empty. Raises BadDocument if there is none or it cannot be read."""


def documents(block: Block, options: Options) -> Iterator[Document]:
    """The documents of a block, in order. Skips empty lines of JSONL."""
    data = block.data
    if isinstance(data, list):
        for number, value in enumerate(data, start=block.start.record):
            where = f"{block.path}, row {number}"
            yield Document(where, number, functools.partial(_row_text, value, where, options))
        return
    if block.too_long:
        refuse = functools.partial(_refuse, block.too_long, TOO_LONG, "too long")
        yield Document(block.too_long, block.end.record, refuse)
        return
    separator = b"\n" if block.kind == "jsonl" else options.split_on.encode()
    name = "line" if block.kind == "jsonl" else "text"
    offset = block.start.position
    for number, record in enumerate(data.split(separator) if separator else [data], start=block.start.record + 1):
        where = f"{block.path}, {name} {number}" if separator else block.path
        if block.kind == "text" or record.strip():
            yield Document(where, number, functools.partial(_text, record, where, offset, block, options))
        offset += len(record) + len(separator)


def texts(block: Block, options: Options) -> Iterator[str]:
    """The documents' texts, empty ones included. Raises BadDocument for one that cannot be read."""
    for document in documents(block, options):
        yield document.text()


def _text(record: bytes, where: str, offset: int, block: Block, options: Options) -> str:
    if len(record) > MAX_RECORD_BYTES:
        _refuse(where, TOO_LONG, "too long")
    bom = 3 if offset == 0 and record.startswith(b"\xef\xbb\xbf") else 0
    text = _decode(record[bom:], where, block.path, offset + bom, options.errors)
    return text if block.kind == "text" else _json_text(text, where, options.text_key)


def _decode(record: bytes, where: str, path: str, offset: int, errors: str) -> str:
    kind = kind_by_magic(record) if offset == 0 else None
    head = record[:_HEAD]
    if kind is None and offset == 0 and len(head) > 8 and 3 * head.count(0) > len(head):
        kind = "UTF-16 text"  # without a byte-order mark; as UTF-8, every second character is NUL
    try:
        if kind != "UTF-16 text":
            return record.decode("utf-8", errors)
        position, byte = offset, record[0]
    except UnicodeDecodeError as error:
        position, byte = offset + error.start, record[error.start]
    begins = f"; the file begins as {kind} does" if kind else ""
    raise BadDocument(
        f"{path} is not UTF-8 at byte {position} (0x{byte:02x}), in {where.removeprefix(path + ', ')}{begins}; convert "
        "it, pass --errors replace to put U+FFFD there, or --on-error skip to leave out such documents",
        "not UTF-8",
    )


def _json_text(line: str, where: str, key: str) -> str:
    if not line.strip():
        return ""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        _refuse(where, f"not JSON ({error}); expected one object a line", "not JSON")
    if not isinstance(document, dict):
        _refuse(where, f"a JSON {_json_name(document)}; expected an object with the key {key!r}", "not an object")
    if key not in document:
        keys = ", ".join(list(document)[:10])
        _refuse(where, f"no key {key!r}; the keys are {keys or 'none'}: choose one with --text-key", "no text")
    text = document[key]
    if text is None:
        _refuse(where, f"{key!r} is null; expected text", "null")
    if not isinstance(text, str):
        _refuse(where, f"{key!r} is a JSON {_json_name(text)}; expected text", "not text")
    return text


def _json_name(value: object) -> str:
    """JSON's name for the type of a value."""
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names[type(value)]


def _row_text(value: str | bytes | None, where: str, options: Options) -> str:
    if value is None:
        _refuse(where, f"column {options.text_key!r} is null; expected text", "null")
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8", options.errors)
    except UnicodeDecodeError as error:
        _refuse(where, f"column {options.text_key!r} is not UTF-8 at byte {error.start}; expected text", "not UTF-8")


def _refuse(where: str, what: str, reason: str) -> NoReturn:
    raise BadDocument(f"{where}: {what} (--on-error skip skips such documents)", reason)
