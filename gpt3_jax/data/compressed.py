"""Reads a file chunk by chunk, decompressing gzip and zstd."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator

from gpt3_jax.data.files import read_errors, regular
from gpt3_jax.errors import RunError, UserError

SUFFIXES = (".gz", ".zst")


def is_compressed(path: str) -> bool:
    """Whether the file name has the extension of a compressed file."""
    return path.lower().endswith(SUFFIXES)


def chunks(path: str, offset: int, size: int) -> Iterator[tuple[bytes, int]]:
    """Yields (bytes of text, position in the file on disk). A file that is not compressed is read from byte `offset`.

    Raises:
      UserError: the file is zstd and the package that reads it is not installed.
      RunError: the file cannot be read, or is damaged or truncated.
    """
    lower = path.lower()
    found = regular(path)
    if is_compressed(lower) and not found.st_size:
        raise RunError(f"{path} is empty, which is not a valid compressed file; it is truncated, fetch it again")
    with read_errors(path), open(path, "rb") as raw:
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
        raise RunError(f"{path} is not valid gzip ({error}); fetch it again") from None


def _zstd_chunks(path: str, read: Callable[[], bytes], tell: Callable[[], int]) -> Iterator[tuple[bytes, int]]:
    try:
        import zstandard
    except ImportError:
        raise UserError(
            f"{path} is zstd, which needs the package zstandard: pip install -c constraints.txt -e '.[data]'"
        ) from None
    # One decompressor per frame: the library's stream reader takes a truncated file for a complete one.
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
        raise RunError(f"{path} is not valid zstd ({error}); fetch it again") from None
    if frame is not None:
        raise RunError(f"{path} ends in the middle of its zstd stream; it is truncated, fetch it again")
