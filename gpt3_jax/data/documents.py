"""Reading text, JSONL (plain, gzip, zstd) and Parquet as a sequence of blocks of whole documents.

Reading only cuts files into blocks at record boundaries; `texts` parses a block. So one process can read, many can
parse and tokenize, and reading can start again at any block's end.
"""

from __future__ import annotations

import dataclasses
import glob
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from gpt3_jax.errors import RunError, UserError

Kind = Literal["text", "jsonl", "parquet"]

_KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_COMPRESSED = (".gz", ".zst")


@dataclasses.dataclass(frozen=True)
class Options:
    """How documents are found in files."""

    text_key: str = "text"
    """The JSON key or Parquet column that holds the text."""
    split_on: str = ""
    """Text files are cut into documents here, the separator left out; empty: a file is one document."""
    kind: Kind | None = None
    """What every file is; None: by its extension."""
    errors: Literal["strict", "replace"] = "strict"
    """Bytes that are not UTF-8: an error, or U+FFFD."""


@dataclasses.dataclass(frozen=True)
class Input:
    """One file to read."""

    path: str
    kind: Kind
    size: int
    modified_ns: int


@dataclasses.dataclass(frozen=True)
class Cursor:
    """A place between two documents."""

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
    data: bytes | list[str | None]
    start: Cursor
    """Where the block begins."""
    end: Cursor
    """Where reading goes on after it."""
    bytes_read: int
    """Bytes of input files, as they lie on disk, that had been read by then; for the progress bar."""


def find_inputs(patterns: Sequence[str], kind: Kind | None) -> list[Input]:
    """Expands files and globs, in the order given and sorted within a glob.

    Raises UserError for what matches nothing, is a folder, has an unknown extension or is given twice.
    """
    inputs: dict[str, Input] = {}
    for pattern in patterns:
        if Path(pattern).is_dir():
            raise UserError(f"{pattern} is a folder; give files or a glob in quotes, such as '{pattern}/**/*.jsonl'")
        found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        files = [path for path in found if not Path(path).is_dir()]
        if not files:
            raise UserError(f"no file matches {pattern}; give existing files or globs")
        for path in files:
            identity = os.path.realpath(path)
            if identity in inputs:
                raise UserError(f"{path} is given twice; its documents would stand in the data twice")
            status = Path(path).stat()
            inputs[identity] = Input(path, kind or _kind(path), status.st_size, status.st_mtime_ns)
    return list(inputs.values())


def _kind(path: str) -> Kind:
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    if suffixes and suffixes[-1] in _KINDS:
        return _KINDS[suffixes[-1]]
    raise UserError(
        f"{path} has an extension that says neither text, JSONL nor Parquet (known: {' '.join(_KINDS)}, the first "
        "five also with .gz or .zst); say what it is with --format"
    )


def blocks(inputs: Sequence[Input], options: Options, start: Cursor, block_bytes: int) -> Iterator[Block]:
    """Cuts the inputs, from `start` on, into blocks of at least one record and about `block_bytes`."""
    before = sum(file.size for file in inputs[: start.file])
    for number in range(start.file, len(inputs)):
        file = inputs[number]
        at = start if number == start.file else Cursor(number)
        try:
            if file.kind == "parquet":
                yield from _parquet_blocks(file, options, at, block_bytes, before)
            else:
                separator = b"\n" if file.kind == "jsonl" else options.split_on.encode()
                yield from _byte_blocks(file, separator, at, block_bytes, before)
        except OSError as error:
            raise RunError(f"cannot read {file.path}: {error.strerror or error}") from error
        before += file.size


def _byte_blocks(file: Input, separator: bytes, start: Cursor, block_bytes: int, before: int) -> Iterator[Block]:
    held = bytearray()
    at = start
    done = before
    seekable = not file.path.lower().endswith(_COMPRESSED)
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

    for chunk, position in _chunks(file.path, start.position if seekable else 0, min(block_bytes, 1 << 20)):
        done = before + position
        if skip:
            skipped = min(skip, len(chunk))
            skip -= skipped
            chunk = chunk[skipped:]
        # A separator may straddle two chunks; the search goes back by its length.
        fresh = max(0, len(held) - len(separator) + 1)
        held += chunk
        if separator and len(held) >= block_bytes and held.find(separator, fresh) >= 0:
            # Cut where splitting from the left cuts: "\n\n" in "\n\n\n" is its first two, whatever the block.
            yield block(len(held) - len(held.split(separator)[-1]))
    if held:
        yield block(len(held))


def _chunks(path: str, offset: int, size: int) -> Iterator[tuple[bytes, int]]:
    """(bytes of text, position in the file as it lies on disk) from byte `offset` of a file's text."""
    lower = path.lower()
    with open(path, "rb") as raw:
        if lower.endswith(".gz"):
            yield from _gzip_chunks(path, gzip.GzipFile(fileobj=raw), size, raw.tell)
        elif lower.endswith(".zst"):
            yield from _zstd_chunks(path, lambda: raw.read(size), raw.tell)
        else:
            raw.seek(offset)
            while chunk := raw.read(size):
                yield chunk, raw.tell()


def _gzip_chunks(path: str, file: gzip.GzipFile, size: int, tell: Callable[[], int]) -> Iterator[tuple[bytes, int]]:
    try:
        while chunk := file.read(size):
            yield chunk, tell()
    except EOFError:
        raise RunError(f"{path} ends in the middle of its gzip stream; it is truncated, fetch it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise RunError(f"{path} is not sound gzip ({error}); fetch it again") from None


def _zstd_chunks(path: str, read: Callable[[], bytes], tell: Callable[[], int]) -> Iterator[tuple[bytes, int]]:
    try:
        import zstandard
    except ImportError:
        raise UserError(
            f"{path} is zstd, which needs the package zstandard: pip install -c constraints.txt -e '.[data]'"
        ) from None
    # One object a frame: the library's stream reader takes a truncated file for a complete one.
    decoder = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame = None
    data = b""
    try:
        while data := data or read():
            frame = frame or decoder.decompressobj()
            if chunk := frame.decompress(data):
                yield chunk, tell()
            data = b""
            if frame.eof:
                data, frame = frame.unused_data, None
    except zstandard.ZstdError as error:
        raise RunError(f"{path} is not sound zstd ({error}); fetch it again") from None
    if frame is not None:
        raise RunError(f"{path} ends in the middle of its zstd stream; it is truncated, fetch it again")


def _parquet_blocks(file: Input, options: Options, start: Cursor, block_bytes: int, before: int) -> Iterator[Block]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise UserError(
            f"{file.path} is Parquet, which needs the package pyarrow: pip install -c constraints.txt -e '.[data]'"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(file.path) as table:
            schema = table.schema_arrow
            if options.text_key not in schema.names:
                raise UserError(
                    f"{file.path} has no column {options.text_key!r}; it has {', '.join(schema.names)}: "
                    "choose one with --text-key"
                )
            kind = schema.field(options.text_key).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise UserError(f"{file.path}: column {options.text_key!r} holds {kind}; expected strings")
            rows = max(1, table.metadata.num_rows)
            row = 0
            for group in range(table.num_row_groups):
                length = table.metadata.row_group(group).num_rows
                if row + length > start.position:
                    column = table.read_row_group(group, columns=[options.text_key]).column(0)
                    step = max(1, length * block_bytes // max(1, column.nbytes))
                    for first in range(max(0, start.position - row), length, step):
                        last = min(first + step, length)
                        yield Block(
                            file.path,
                            "parquet",
                            column.slice(first, last - first).to_pylist(),
                            Cursor(start.file, row + first, row + first),
                            Cursor(start.file, row + last, row + last),
                            before + file.size * (row + last) // rows,
                        )
                row += length
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise RunError(f"{file.path} is not sound Parquet ({str(error).splitlines()[0]}); fetch it again") from None


def texts(block: Block, options: Options) -> Iterator[str]:
    """The documents of a block, empty ones included.

    Raises UserError naming the file, and the line, record or byte, of a document that cannot be read.
    """
    if isinstance(block.data, list):
        for number, text in enumerate(block.data, start=block.start.record):
            if text is None:
                raise UserError(f"{block.path}, row {number}: column {options.text_key!r} is null; expected text")
            yield text
        return
    data = block.data
    separator = b"\n" if block.kind == "jsonl" else options.split_on.encode()
    offset = block.start.position
    for number, record in enumerate(data.split(separator) if separator else [data], start=block.start.record + 1):
        bom = 3 if offset == 0 and record.startswith(b"\xef\xbb\xbf") else 0
        text = _decode(record[bom:], block.path, offset + bom, options.errors)
        offset += len(record) + len(separator)
        if block.kind == "text":
            yield text
        elif text.strip():
            yield _json_text(text, f"{block.path}, line {number}", options.text_key)


def _decode(record: bytes, path: str, offset: int, errors: str) -> str:
    try:
        return record.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 at byte {offset + error.start} (0x{record[error.start]:02x}); convert it, "
            "or pass --errors replace to put U+FFFD there"
        ) from None


def _json_text(line: str, where: str, key: str) -> str:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); expected one object a line") from None
    if not isinstance(document, dict):
        raise UserError(f"{where}: a JSON {type(document).__name__}; expected an object with the key {key!r}")
    if key not in document:
        keys = ", ".join(list(document)[:10])
        raise UserError(f"{where}: no key {key!r}; the keys are {keys or 'none'}: choose one with --text-key")
    text = document[key]
    if not isinstance(text, str):
        raise UserError(f"{where}: {key!r} is a JSON {type(text).__name__}; expected text")
    return text
