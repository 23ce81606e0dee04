"""The token format on disk: a folder of memory-mappable shards with an index that is written last.

    index.json        counts, dtype, tokenizer, sha256 of every other file; its presence means the folder is complete
    tokens-00000.bin  little-endian uint16 (uint32 from 65,537 token ids), every shard but the last of equal length
    documents.bin     uint64: the position of each document's first token

Positions count tokens over all shards; a document may straddle two. Each document ends with end-of-text.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpt3_jax.errors import RunError, UserError

INDEX = "index.json"
DOCUMENTS = "documents.bin"
FORMAT = "gpt3_jax tokens"
VERSION = 1
DEFAULT_SHARD_TOKENS = 2**28
DOCUMENT_DTYPE = np.dtype("<u8")

_OPEN_MAPS = 256  # a memory map holds a file descriptor, of which a process commonly has 1,024


def token_dtype(n_vocab: int) -> np.dtype[Any]:
    """The narrowest token type that this project writes for `n_vocab` ids."""
    return np.dtype("<u2") if n_vocab <= 65_536 else np.dtype("<u4")


def shard_name(number: int) -> str:
    return f"tokens-{number:05d}.bin"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of tokens."""

    file: str
    tokens: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class TokenizerRecord:
    """Which tokenizer wrote the tokens."""

    name: str
    fingerprint: str
    n_vocab: int
    eot: int


@dataclasses.dataclass(frozen=True)
class Index:
    """What index.json says."""

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
    """How it was made: inputs and options."""

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str, path: Path) -> Index:
        try:
            fields = json.loads(text)
            if fields.pop("format") != FORMAT:
                raise KeyError("format")
            version = fields.pop("version")
            if version != VERSION:
                raise UserError(
                    f"{path} is of version {version}; this program reads version {VERSION}, tokenize the text again"
                )
            fields["tokenizer"] = TokenizerRecord(**fields["tokenizer"])
            fields["shards"] = tuple(Shard(**shard) for shard in fields["shards"])
            index = Index(**fields)
            whole = sum(shard.tokens for shard in index.shards) == index.n_tokens
            even = all(shard.tokens == index.shard_tokens for shard in index.shards[:-1])
            sound = (index.n_documents > 0) == (index.n_tokens > 0)
            if not whole or not even or not sound or index.dtype != token_dtype(index.tokenizer.n_vocab).name:
                raise ValueError("counts disagree")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{path} is damaged or not an index of token shards ({error}); tokenize again") from None
        return index


class ShardSource:
    """Token shards opened for reading. Threads may read at once.

    Raises:
      UserError: not a finished folder of token shards, or an empty one.
      RunError: a file is missing or has another size than the index says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        folder = Path(path)
        if not (folder / INDEX).is_file():
            partial = folder.with_name(folder.name + ".partial")
            hint = (
                f"{partial} is there: its tokenization did not finish, run the same command again"
                if partial.is_dir()
                else "expected a folder written by `gpt3-jax data tokenize`"
            )
            raise UserError(f"{self.path} has no {INDEX}; {hint}")
        try:
            text = (folder / INDEX).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise RunError(f"{folder / INDEX} is damaged (not UTF-8); tokenize again") from None
        self.index = Index.from_json(text, folder / INDEX)
        self.dtype = np.dtype(self.index.dtype).newbyteorder("<")
        self.n_tokens = self.index.n_tokens
        self.n_documents: int | None = self.index.n_documents
        self.max_token: int | None = self.index.max_token
        self.tokenizer_fingerprint: str | None = self.index.tokenizer.fingerprint
        for file, size, _ in self._files():
            if not file.is_file():
                raise RunError(f"{file} is missing, but the index beside it lists it; restore it or tokenize again")
            if file.stat().st_size != size:
                raise RunError(
                    f"{file} has {file.stat().st_size} bytes where the index says {size}; it is truncated or not the "
                    "file that was written, restore it or tokenize again"
                )
        if self.n_tokens == 0:
            raise UserError(f"{self.path} holds no tokens; give a source that is not empty")
        digest = hashlib.sha256(f"{self.index.dtype} {self.tokenizer_fingerprint}\n".encode())
        for shard in self.index.shards:
            digest.update(f"{shard.tokens} {shard.sha256}\n".encode())
        self.fingerprint = digest.hexdigest()
        # Bound here, not with a decorator on the method, so that the cache dies with this object.
        self._map = functools.lru_cache(maxsize=_OPEN_MAPS)(self._open_map)

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens start .. start + count - 1, in the type on disk [count]; may straddle shards."""
        if start < 0 or start + count > self.n_tokens:
            raise ValueError(f"{self.path}: tokens {start} to {start + count} of {self.n_tokens}")
        out = np.empty(count, self.dtype)
        done = 0
        while done < count:
            number, offset = divmod(start + done, self.index.shard_tokens)
            piece = self._map(number)[offset : offset + count - done]
            out[done : done + len(piece)] = piece
            done += len(piece)
        return out

    def document_at(self, position: int) -> int | None:
        """Number of the document, from 0, that holds the token at `position`."""
        return int(np.searchsorted(self._document_starts, np.uint64(position), side="right")) - 1

    def document_start(self, document: int) -> int:
        """Position of the first token of a document."""
        return int(self._document_starts[document])

    def verify(self) -> None:
        """Compares every file with its checksum. Raises RunError naming the first that differs."""
        for file, _, sha256 in self._files():
            if file_sha256(file) != sha256:
                raise RunError(
                    f"{file} does not have the checksum that the index beside it says: its contents changed; "
                    "restore it or tokenize again"
                )
        starts = self._document_starts
        if starts[0] != 0 or (np.diff(starts.astype(np.int64)) <= 0).any() or starts[-1] >= self.n_tokens:
            raise RunError(f"{Path(self.path) / DOCUMENTS}: document positions do not ascend from 0; tokenize again")

    def _files(self) -> Iterator[tuple[Path, int, str]]:
        for shard in self.index.shards:
            yield Path(self.path) / shard.file, shard.tokens * self.dtype.itemsize, shard.sha256
        size = self.index.n_documents * DOCUMENT_DTYPE.itemsize
        yield Path(self.path) / DOCUMENTS, size, self.index.documents_sha256

    def _open_map(self, number: int) -> np.ndarray:
        return np.memmap(Path(self.path) / self.index.shards[number].file, self.dtype, mode="r")

    @functools.cached_property
    def _document_starts(self) -> np.ndarray:
        return np.memmap(Path(self.path) / DOCUMENTS, DOCUMENT_DTYPE, mode="r")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
