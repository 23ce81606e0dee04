"""Reads text, JSONL (plain, gzip, zstd) and Parquet as a sequence of blocks of whole documents.

Reading only cuts files into blocks at record boundaries; `records.documents` parses a block. So one process can read
while many parse and tokenize, and reading can resume at the end of any block.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from gpt3_jax.data.compressed import SUFFIXES, chunks, is_compressed
from gpt3_jax.data.files import is_folder, read_errors, regular, status
from gpt3_jax.data.parquet import column_slices
from gpt3_jax.errors import UserError

Kind = Literal["text", "jsonl", "parquet"]

_KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}

MAX_RECORD_BYTES = 2**30
TOO_LONG = f"longer than {MAX_RECORD_BYTES:,} bytes; cut it (text files: with --split-on)"


class BadDocument(UserError):
    """A document that cannot be read, in a file that can.

    Args:
      message: names its place and what to do.
      reason: a word or two, under which it is counted.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Options:
    """How files are split into documents."""

    text_key: str = "text"
    """The JSON key or Parquet column that holds the text."""
    split_on: str = ""
    """Separator of documents in text files, itself dropped; empty: a file is one document."""
    kind: Kind | None = None
    """Format of every file; None: by extension."""
    errors: Literal["strict", "replace"] = "strict"
    """Bytes that are not UTF-8: raise an error, or replace them by U+FFFD."""
    on_error: Literal["stop", "skip"] = "stop"
    """A document that cannot be read (null, not JSON, not UTF-8): raise an error, or skip and count it."""


@dataclasses.dataclass(frozen=True)
class Input:
    """One file to read."""

    path: str
    kind: Kind
    size: int
    modified_ns: int


@dataclasses.dataclass(frozen=True)
class Cursor:
    """A position between two documents."""

    file: int = 0
    position: int = 0
    """Bytes of (decompressed) text before it, or rows of a Parquet file."""
    record: int = 0
    """Records (lines, separated texts, rows) before it."""


@dataclasses.dataclass(frozen=True)
class Block:
    """Whole records of one file."""

    path: str
    kind: Kind
    data: bytes | list[str | bytes | None]
    start: Cursor
    """Start of the block."""
    end: Cursor
    """Position at which reading continues after the block."""
    bytes_read: int
    """Bytes of input files read so far, as stored on disk; for the progress bar."""
    too_long: str = ""
    """File and line of one record that is too long to keep in memory, in place of its data."""


def find_inputs(patterns: Sequence[str], kind: Kind | None) -> list[Input]:
    """Expands files and globs, in the order given and sorted within a glob.

    Raises UserError if a pattern matches nothing, is a folder, has an unknown extension or is given twice.
    """
    inputs: dict[str, Input] = {}
    for pattern in patterns:
        if is_folder(pattern):
            raise UserError(f"{pattern} is a folder; give files or a glob in quotes, such as '{pattern}/**/*.jsonl'")
        found = [pattern] if status(pattern) is not None else _glob(pattern)
        files = [path for path in found if not is_folder(path)]
        if not files:
            raise UserError(f"no file matches {pattern}; give existing files or globs")
        for path in files:
            identity = os.path.realpath(path)
            if identity in inputs:
                raise UserError(f"{path} is given twice; its documents would be in the data twice")
            what = regular(path)
            inputs[identity] = Input(path, kind or _kind(path), what.st_size, what.st_mtime_ns)
    return list(inputs.values())


def _glob(pattern: str) -> list[str]:
    """The matching files, sorted. Leading folders that exist literally are not treated as patterns."""
    base, rest = Path(), Path(pattern).parts
    while len(rest) > 1 and is_folder(base / rest[0]):
        base, rest = base / rest[0], rest[1:]
    with read_errors(base):
        os.scandir(base).close()  # glob treats an unreadable folder as empty
    found = sorted(glob.glob(os.path.join(*rest), root_dir=base, recursive=True))
    return [os.path.join(base, path) if base != Path() else path for path in found]


def _kind(path: str) -> Kind:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in SUFFIXES:
        suffixes.pop()
    if suffixes and suffixes[-1] in _KINDS:
        return _KINDS[suffixes[-1]]
    raise UserError(
        f"{path} has an unknown extension (known: {' '.join(_KINDS)}, the first "
        "five also with .gz or .zst); set its format with --format"
    )


def blocks(inputs: Sequence[Input], options: Options, start: Cursor, block_bytes: int) -> Iterator[Block]:
    """Cuts the inputs, from `start` on, into blocks of at least one record and about `block_bytes`."""
    before = sum(file.size for file in inputs[: start.file])
    for number in range(start.file, len(inputs)):
        file = inputs[number]
        at = start if number == start.file else Cursor(number)
        if file.kind == "parquet":
            yield from _parquet_blocks(file, options, at, block_bytes, before)
        else:
            separator = b"\n" if file.kind == "jsonl" else options.split_on.encode()
            yield from _byte_blocks(file, separator, options, at, block_bytes, before)
        before += file.size


def _byte_blocks(
    file: Input, separator: bytes, options: Options, start: Cursor, block_bytes: int, before: int
) -> Iterator[Block]:
    held = bytearray()
    at = start
    done = before
    seekable = not is_compressed(file.path)
    skip = 0 if seekable else start.position

    def block(size: int) -> Block:
        nonlocal at
        data = bytes(held[:size])
        del held[:size]
        records = data.count(separator) if separator else 1
        end = Cursor(at.file, at.position + size, at.record + records)
        result = Block(file.path, file.kind, data, at, end, done)
        at = end
        return result

    limit = max(MAX_RECORD_BYTES, block_bytes)
    dropping, dropped = False, 0  # a record that is too long, and its bytes so far

    def place(record: int) -> str:
        return f"{file.path}, {'line' if file.kind == 'jsonl' else 'text'} {record}" if separator else file.path

    def drop(size: int) -> Block:
        nonlocal at, dropping, dropped
        end = Cursor(at.file, at.position + dropped + size, at.record + 1)
        result = Block(file.path, file.kind, b"", at, end, done, too_long=place(end.record))
        del held[:size]
        at, dropping, dropped = end, False, 0
        return result

    for chunk, position in chunks(file.path, start.position if seekable else 0, min(block_bytes, 1 << 20)):
        done = before + position
        if skip:
            skipped = min(skip, len(chunk))
            skip -= skipped
            chunk = chunk[skipped:]
        # A separator may straddle two chunks, so the search starts its length earlier.
        fresh = max(0, len(held) - len(separator) + 1)
        held += chunk
        if not dropping and len(held) > limit:
            if separator and separator in held:
                yield block(len(held) - len(held.split(separator)[-1]))
            dropping = len(held) > limit
            if dropping and options.on_error == "stop":
                raise BadDocument(f"{place(at.record + 1)}: {TOO_LONG}", "too long")
        if dropping:
            cut = held.find(separator) if separator else -1
            if cut < 0:
                # Everything except what may be the beginning of a separator.
                size = len(held) - max(0, len(separator) - 1)
                dropped += size
                del held[:size]
                continue
            yield drop(cut + len(separator))
            fresh = 0
        if separator and len(held) >= block_bytes and held.find(separator, fresh) >= 0:
            # Cut where splitting from the left cuts: "\n\n" in "\n\n\n" is the first two characters, in any block.
            yield block(len(held) - len(held.split(separator)[-1]))
    if dropping:
        yield drop(len(held))
    elif held:
        yield block(len(held))


def _parquet_blocks(file: Input, options: Options, start: Cursor, block_bytes: int, before: int) -> Iterator[Block]:
    for values, first, last, rows in column_slices(file.path, options.text_key, start.position, block_bytes):
        begin, end = (Cursor(start.file, row, row) for row in (first, last))
        yield Block(file.path, "parquet", values, begin, end, before + file.size * last // max(1, rows))
