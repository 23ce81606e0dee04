"""Reads files without memory maps, and turns each failure of the system into one line that names the file.

If another program truncates a memory-mapped file, SIGBUS ends the process without a message. A read past the end is an
ordinary error. So numbers are read from the file when they are needed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt3_jax.errors import RunError, UserError

SAMPLE_BYTES = 1 << 14
WHOLE_BYTES = 1 << 20
"""Files up to this size are hashed completely."""
_FEWEST, _MOST, _BYTES_PER_SAMPLE = 16, 256, 1 << 25

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

_MAGIC = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "a zip archive (.npz and PyTorch's .pt are such)"),
    (b"PAR1", "Parquet"),
    (b"\x89HDF", "HDF5"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"ARROW1", "Arrow"),
    (b"\xff\xfe\x00\x00", "UTF-32 text"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
)


def kind_by_magic(head: bytes) -> str | None:
    """The kind of file that starts with these bytes, in words; None if they match no known kind."""
    return next((name for magic, name in _MAGIC if head.startswith(magic)), None)


@contextlib.contextmanager
def read_errors(path: str | Path) -> Iterator[None]:
    """Turns OSErrors while `path` is read into one line.

    Raises:
      UserError: the file does not exist.
      RunError: it cannot be read because of permissions, a loop of links, or a failing disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            if os.path.islink(path):
                target = os.readlink(path)
                raise UserError(f"{path} is a link to {target}, which is not there; fix the link") from None
            raise UserError(f"{path} is not there; give a path that exists") from None
        hint = "give this user the right to read it" if error.errno in (errno.EACCES, errno.EPERM) else "fix it"
        raise RunError(f"cannot read {path}: {reason(error)}; {hint}, or choose another") from None
    except ValueError as error:
        if "null" not in str(error):
            raise
        raise UserError(f"{os.fspath(path)!r} is not a path: it contains a NUL character") from None


def reason(error: OSError) -> str:
    """The system's message for an error, in one line."""
    return error.strerror or str(error).partition("\n")[0] or type(error).__name__


def status(path: str | Path) -> os.stat_result | None:
    """The status of `path`; None if it does not exist. Raises RunError if the status cannot be read."""
    try:
        with read_errors(path):
            return os.stat(path)
    except UserError:
        if os.path.islink(path):
            raise
        return None


def is_folder(path: str | Path) -> bool:
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_file(path: str | Path) -> bool:
    """Whether `path` is a regular file, and not a pipe, socket or device."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def regular(path: str | Path) -> os.stat_result:
    """The status of a regular file. Raises UserError for a folder, pipe, socket, device or missing file."""
    with read_errors(path):
        found = os.stat(path)
    for test, name in _KINDS:
        if test(found.st_mode):
            raise UserError(f"{path} is {name}; expected a regular file, which can be read more than once")
    return found


def read_text(path: str | Path) -> str:
    """The text of a small file written by this project. Raises UnicodeDecodeError if it is not UTF-8."""
    regular(path)
    with read_errors(path):
        return Path(path).read_text(encoding="utf-8")


def stamp(path: str | Path) -> tuple[int, int, int]:
    """Size, modification time and inode, one of which any ordinary change of a file changes."""
    found = regular(path)
    return found.st_size, found.st_mtime_ns, found.st_ino


class OpenFile:
    """A regular file open for random-access reading. Thread-safe. Closed when no reference is left."""

    def __init__(self, path: str | Path) -> None:
        self.descriptor = -1
        regular(path)  # before opening, because opening a pipe waits for a writer
        self.path = str(path)
        with read_errors(path):
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self.descriptor).st_size

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fills a contiguous array from byte `start`. Raises RunError if the file has become too short."""
        if not out.size:
            return
        rest = memoryview(out.reshape(-1).view(np.uint8).data)
        with read_errors(self.path):
            while rest:
                count = os.preadv(self.descriptor, [rest], start)
                if count == 0:
                    raise RunError(
                        f"{self.path} has {os.fstat(self.descriptor).st_size} bytes and had {self.size} when it was "
                        "opened: it was shortened meanwhile; restore it, and start again"
                    )
                rest, start = rest[count:], start + count

    def bytes_at(self, start: int, count: int) -> bytes:
        """Bytes start .. start + count - 1."""
        out = np.empty(count, np.uint8)
        self.read_into(out, start)
        return out.tobytes()


class Numbers(Sequence[int]):
    """Numbers of one type stored in a file from byte `offset` on. Thread-safe."""

    def __init__(self, file: OpenFile, dtype: np.dtype[Any], offset: int, count: int) -> None:
        self._file, self._offset, self._count = file, offset, count
        self.dtype = dtype

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, int):
            raise TypeError("one number at a time; several by read()")
        if not 0 <= index < self._count:
            raise IndexError(index)
        return int(self.read(index, 1)[0])

    def read(self, start: int, count: int) -> np.ndarray:
        """Numbers start .. start + count - 1, in their type on disk [count]."""
        out = np.empty(count, self.dtype)
        self._file.read_into(out, self._offset + start * self.dtype.itemsize)
        return out


def sample_starts(size: int) -> list[tuple[int, int]]:
    """(first byte, bytes) of the sampled blocks of a file: all of it up to 1 MiB, else one block of 16 KiB for each 32
    MiB, at least 16 and at most 256, spread evenly from the first byte to the last."""
    if size <= WHOLE_BYTES:
        return [(0, size)]
    count = min(max(size // _BYTES_PER_SAMPLE, _FEWEST), _MOST)
    last = size - SAMPLE_BYTES
    return [(last * number // (count - 1), SAMPLE_BYTES) for number in range(count)]


def content_digest(file: OpenFile) -> str:
    """Identifies a file without reading terabytes: sha256 of a file up to 1 MiB, of size and samples above that.

    It detects another file, another length, text tokenized again, and anything inserted or removed. It cannot detect an
    edit in place between the samples (0.05 % of a 1 GB file are sampled); checksums can.
    """
    if file.size <= WHOLE_BYTES:
        return hashlib.sha256(file.bytes_at(0, file.size)).hexdigest()
    digest = hashlib.sha256(f"{file.size}\n".encode())
    for start, count in sample_starts(file.size):
        digest.update(file.bytes_at(start, count))
    return digest.hexdigest()


def drop_from_memory(path: str | Path) -> None:
    """Asks the system to drop the file from the page cache, so that reading it reads the disk."""
    file = OpenFile(path)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def file_sha256(path: str | Path) -> str:
    """sha256 of the whole file."""
    regular(path)
    with read_errors(path), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
