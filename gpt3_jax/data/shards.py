"""The token format on disk: a folder of shards and an index that is written last.

    index.json        counts, dtype, tokenizer, checksums of all other files; exists only if the folder is complete
    tokens-00000.bin  little-endian uint16 (uint32 from 65,537 token ids); all shards but the last have equal length
    documents.bin     uint64: the position of each document's first token

Positions count tokens over all shards; a document may straddle two. Each document ends with end-of-text.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gpt3_jax.data.files import (
    WHOLE_BYTES,
    Numbers,
    OpenFile,
    content_digest,
    file_sha256,
    is_file,
    is_folder,
    read_text,
    regular,
    stamp,
)
from gpt3_jax.errors import RunError, UserError

INDEX = "index.json"
DOCUMENTS = "documents.bin"
FORMAT = "gpt3_jax tokens"
VERSION = 2
"""Version 1, which is also read, has no samples of its shards and does not record skipped documents."""
DEFAULT_SHARD_TOKENS = 2**28
DOCUMENT_DTYPE = np.dtype("<u8")

OPEN_FILES = 256  # the usual limit of a process is 1,024
_THREADS = 16  # read at once, to hide the latency of remote storage
_PART = 1 << 20


def token_dtype(n_vocab: int) -> np.dtype[Any]:
    """The narrowest token type that this project writes for a vocabulary of `n_vocab`."""
    return np.dtype("<u2") if n_vocab <= 65_536 else np.dtype("<u4")


def shard_name(number: int) -> str:
    return f"tokens-{number:05d}.bin"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of tokens."""

    file: str
    tokens: int
    sha256: str
    sampled: str = ""
    """`files.content_digest` when it was written; empty in version 1."""


@dataclasses.dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer that wrote the tokens."""

    name: str
    fingerprint: str
    n_vocab: int
    eot: int


@dataclasses.dataclass(frozen=True)
class Index:
    """The contents of index.json."""

    dtype: str
    n_tokens: int
    n_documents: int
    max_token: int
    text_bytes: int
    shard_tokens: int
    tokenizer: TokenizerRecord
    shards: tuple[Shard, ...]
    documents_sha256: str
    recipe: dict[str, Any]
    """How the shards were made: inputs and options."""
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    """Documents of the inputs that are not in the shards: number by reason."""
    left_out_first: tuple[str, ...] = ()
    """The first few documents that could not be read, with place and reason."""

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str, path: Path) -> Index:
        try:
            fields = json.loads(text)
            if fields.pop("format") != FORMAT:
                raise KeyError("format")
            version = fields.pop("version")
            if version not in (1, VERSION):
                raise UserError(
                    f"{path} is of version {version}; this program reads 1 to {VERSION}, tokenize the text again"
                )
            fields["tokenizer"] = TokenizerRecord(**fields["tokenizer"])
            fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
            fields["left_out_first"] = tuple(fields.get("left_out_first", ()))
            index = Index(**fields)
            whole = sum(shard.tokens for shard in index.shards) == index.n_tokens
            even = all(shard.tokens == index.shard_tokens for shard in index.shards[:-1])
            sound = (index.n_documents > 0) == (index.n_tokens > 0)
            if not whole or not even or not sound or index.dtype != token_dtype(index.tokenizer.n_vocab).name:
                raise ValueError("counts disagree")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{path} is damaged or not an index of token shards ({error}); tokenize again") from None
        return index


def read_index(folder: Path) -> Index:
    """The index of a folder. Raises UserError if it has an unsupported version, RunError if it is damaged."""
    path = folder / INDEX
    try:
        return Index.from_json(read_text(path), path)
    except UnicodeDecodeError:
        raise RunError(f"{path} is damaged (not UTF-8); tokenize again") from None


def shard_index(path: Path) -> Index | None:
    """The index beside a single shard, after the file was compared with it. None if this project wrote no index there.

    Raises:
      UserError: the index does not list `path`: it is the table of documents, or belongs to another folder.
      RunError: the file is not the one that the index describes.
    """
    beside = path.parent / INDEX
    if not is_file(beside):
        return None
    try:
        if json.loads(read_text(beside)).get("format") != FORMAT:
            return None
    except (ValueError, AttributeError):
        return None
    index = read_index(path.parent)
    for shard in index.shards:
        if shard.file == path.name:
            _compared((path, shard.tokens * np.dtype(index.dtype).itemsize, shard.sha256, shard.sampled))
            return index
    raise UserError(f"{path} is not among the shards of {beside}; give the folder {path.parent}, or a shard that is")


class ShardSource:
    """Token shards opened for reading. Thread-safe.

    Opening compares each file with the index: its size and its contents, complete up to 1 MiB and sampled above that
    (`files.content_digest`). `verify` compares every byte.

    Raises:
      UserError: not a finished folder of token shards, or an empty one.
      RunError: a file is missing, unreadable, or not the one that the index describes.
    """

    def __init__(self, path: str | Path, *, open_files: int = OPEN_FILES) -> None:
        self.path = str(path)
        folder = Path(path)
        if not is_file(folder / INDEX):
            partial = folder.with_name(folder.name + ".partial")
            hint = (
                f"{partial} is there: its tokenization did not finish, run the same command again"
                if is_folder(partial)
                else "expected a folder written by `gpt3-jax data tokenize`"
            )
            raise UserError(f"{self.path} has no {INDEX}; {hint}")
        self.index = read_index(folder)
        self.dtype = np.dtype(self.index.dtype).newbyteorder("<")
        self.n_tokens = self.index.n_tokens
        self.n_documents: int | None = self.index.n_documents
        self.max_token: int | None = self.index.max_token
        self.tokenizer_fingerprint: str | None = self.index.tokenizer.fingerprint
        if self.n_tokens == 0:
            raise UserError(f"{self.path} holds no tokens; give a source that is not empty")
        self._stamps = self._stamp_files()
        self._found = self._compare()
        digest = hashlib.sha256(f"{self.index.dtype} {self.tokenizer_fingerprint}\n".encode())
        for shard in self.index.shards:
            digest.update(f"{shard.tokens} {shard.sha256}\n".encode())
            if self._found[shard.file] != shard.sha256:  # the file was only sampled
                digest.update(f"{self._found[shard.file]}\n".encode())
        self.fingerprint = digest.hexdigest()
        # Bound here instead of decorating the method, so that the cache is freed with this object.
        self._shard = functools.lru_cache(maxsize=open_files)(self._open_shard)

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens start .. start + count - 1, in their type on disk [count]; may span several shards."""
        if start < 0 or start + count > self.n_tokens:
            raise ValueError(f"{self.path}: tokens {start} to {start + count} of {self.n_tokens}")
        out = np.empty(count, self.dtype)
        done = 0
        while done < count:
            number, offset = divmod(start + done, self.index.shard_tokens)
            shard = self._shard(number)
            length = min(count - done, len(shard) - offset)
            out[done : done + length] = shard.read(offset, length)
            done += length
        return out

    def document_at(self, position: int) -> int | None:
        """Index of the document, from 0, that holds the token at `position`."""
        return bisect.bisect_right(self._document_starts, position) - 1

    def document_start(self, document: int) -> int:
        """Position of the first token of a document."""
        return int(self._document_starts[document])

    def document_starts(self) -> np.ndarray:
        """Positions of the first tokens of all documents [documents]."""
        return self._document_starts.read(0, self.index.n_documents)

    def check_files(self) -> None:
        """Raises RunError for a file that changed since it was opened, as far as samples show."""
        if self._stamp_files() == self._stamps:
            return
        for name, digest in self._compare().items():
            if digest != self._found[name]:
                raise RunError(f"{Path(self.path) / name} changed since it was opened; restore it")

    def verify(self, n_vocab: int | None = None) -> None:
        """Compares every byte of every file with its checksum. Raises RunError naming the first that differs."""
        for file, _, sha256, _ in self._files():
            if file_sha256(file) != sha256:
                raise _changed(file)
        before = -1
        starts = self._document_starts
        for first in range(0, len(starts), _PART):
            values = starts.read(first, min(_PART, len(starts) - first)).astype(np.int64)
            if (first == 0 and values[0] != 0) or values[0] <= before or (np.diff(values) <= 0).any():
                break
            before = int(values[-1])
        else:
            if before < self.n_tokens:
                return
        raise RunError(f"{Path(self.path) / DOCUMENTS}: document positions do not ascend from 0; tokenize again")

    def _files(self) -> Iterator[tuple[Path, int, str, str]]:
        """(path, bytes, sha256, digest of samples) of each file that the index lists."""
        for shard in self.index.shards:
            yield Path(self.path) / shard.file, shard.tokens * self.dtype.itemsize, shard.sha256, shard.sampled
        size = self.index.n_documents * DOCUMENT_DTYPE.itemsize
        yield Path(self.path) / DOCUMENTS, size, self.index.documents_sha256, ""

    def _compare(self) -> dict[str, str]:
        """The digest of each file by name, after comparing it with the index."""
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="shards") as threads:
            return dict(threads.map(_compared, self._files()))

    def _stamp_files(self) -> list[tuple[int, int, int] | None]:
        return [stamp(file) if is_file(file) else None for file, *_ in self._files()]

    def _open_shard(self, number: int) -> Numbers:
        shard = self.index.shards[number]
        return Numbers(OpenFile(Path(self.path) / shard.file), self.dtype, 0, shard.tokens)

    @functools.cached_property
    def _document_starts(self) -> Numbers:
        return Numbers(OpenFile(Path(self.path) / DOCUMENTS), DOCUMENT_DTYPE, 0, self.index.n_documents)


def _compared(expected: tuple[Path, int, str, str]) -> tuple[str, str]:
    """(name, digest) of a file, after comparing it with the index."""
    path, size, sha256, sampled = expected
    if not is_file(path):
        try:
            regular(path)
        except UserError as error:
            raise RunError(f"{error}; the index beside it lists it: restore it or tokenize again") from None
    found = regular(path).st_size
    if found != size:
        raise RunError(
            f"{path} has {found} bytes where the index says {size}; it is truncated or not the file that was written, "
            "restore it or tokenize again"
        )
    digest = content_digest(OpenFile(path))
    written = sha256 if size <= WHOLE_BYTES else sampled
    if written and digest != written:
        raise _changed(path)
    return path.name, digest


def _changed(path: Path) -> RunError:
    return RunError(
        f"{path} does not have the checksum that the index beside it says: its contents changed since it was written, "
        "or it belongs to another folder; restore it or tokenize again"
    )
