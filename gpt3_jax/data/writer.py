"""Writes token shards: appends to DIR.partial, resumes after any interruption, renames to DIR when complete."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from gpt3_jax.data.files import OpenFile, content_digest, drop_from_memory, file_sha256, is_folder, reason, status
from gpt3_jax.data.shards import (
    DEFAULT_SHARD_TOKENS,
    DOCUMENT_DTYPE,
    DOCUMENTS,
    INDEX,
    Index,
    Shard,
    ShardSource,
    TokenizerRecord,
    shard_name,
    token_dtype,
)
from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.errors import RunError, UserError

JOURNAL = "progress.json"
_FIRST = 10


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Documents that are not in the shards."""

    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    """Number of documents, by reason."""
    first: tuple[str, ...] = ()
    """Messages of the first few."""

    def with_one(self, reason: str, message: str = "") -> LeftOut:
        """A copy with one more document. `message`, if any, names its place."""
        return self + LeftOut({reason: 1}, (message,) if message else ())

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in self.counts.items())
        return f"left out: {counts or 'none'}" + (f"; the first: {self.first[0]}" if self.first else "")

    def __add__(self, other: LeftOut) -> LeftOut:
        counts = {name: self.counts.get(name, 0) + other.counts.get(name, 0) for name in self.counts | other.counts}
        return LeftOut(dict(sorted(counts.items())), (self.first + other.first)[:_FIRST])


class ShardWriter:
    """Appends tokenized documents to a folder of shards.

    The files depend only on the documents and on `shard_tokens`, not on how often `append` or `commit` was called or
    the process was killed: `commit` records lengths, and opening the folder again truncates the files to them. Use as a
    context manager. Leaving it without `finish` keeps the partial folder for the next call.

    Args:
      folder: where the complete shards appear. Until then they are in FOLDER.partial.
      tokenizer: the tokenizer of the tokens.
      recipe: description of inputs and options, for the index. A partial folder of another recipe is refused.
      identity: other facts that must be unchanged to continue a partial folder, such as file times.
      shard_tokens: length of every shard but the last, in tokens.

    Raises:
      UserError: the folder exists, holds partial work of another command, or another process is writing to it.
      RunError: the partial folder is damaged, or the disk is full or not writable.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        recipe: dict[str, Any],
        identity: dict[str, Any] | None = None,
        shard_tokens: int = DEFAULT_SHARD_TOKENS,
    ) -> None:
        self._folder = folder
        self._partial = folder.with_name(folder.name + ".partial")
        self._tokenizer = TokenizerRecord(tokenizer.name, tokenizer.fingerprint, tokenizer.n_vocab, tokenizer.eot)
        self._recipe = recipe
        self._dtype = token_dtype(tokenizer.n_vocab)
        self._shard_tokens = shard_tokens
        self._shards: list[Shard] = []
        self._max_token = 0
        self.n_tokens = 0
        self.n_documents = 0
        self.text_bytes = 0
        self.left_out = LeftOut()
        self.cursor: Any = None
        """The cursor of the last `commit`; None if nothing was committed."""
        parts = {
            "tokenizer": dataclasses.asdict(self._tokenizer),
            "shard_tokens": shard_tokens,
            "recipe": recipe,
            "inputs": identity or {},
        }
        self._identity = json.loads(json.dumps(parts))  # as when read back from the journal
        with self._disk_errors():
            if status(folder) is not None and (not is_folder(folder) or any(folder.iterdir())):
                raise UserError(f"{folder} exists and is not an empty folder; choose another, or delete it first")
        with contextlib.ExitStack() as on_failure:
            with self._disk_errors():
                self._partial.mkdir(parents=True, exist_ok=True)
                self._lock = os.open(self._partial, os.O_RDONLY)
            on_failure.callback(os.close, self._lock)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is writing {self._partial}; wait for it, or stop it") from None
            with self._disk_errors():
                self._restore()
                self._in_shard = self.n_tokens - sum(shard.tokens for shard in self._shards)
                self._documents = self._reopen(DOCUMENTS, self.n_documents * DOCUMENT_DTYPE.itemsize)
                self._tokens = self._reopen(shard_name(len(self._shards)), self._in_shard * self._dtype.itemsize)
                for stray in self._partial.glob("tokens-*.bin"):
                    if stray.name > shard_name(len(self._shards)):
                        stray.unlink()
            on_failure.pop_all()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tokens.close()
        self._documents.close()
        os.close(self._lock)

    def append(self, tokens: np.ndarray, lengths: np.ndarray, text_bytes: int, left_out: LeftOut | None = None) -> None:
        """Adds whole documents.

        Args:
          tokens: their concatenated ids, each document with its end-of-text [n].
          lengths: tokens of each document, end-of-text included; they sum to n.
          text_bytes: UTF-8 bytes of their text, for the index.
          left_out: documents skipped among them, for the index.
        """
        self.left_out += left_out or LeftOut()
        if not len(tokens):
            return
        starts = self.n_tokens + np.cumsum(lengths, dtype=np.int64) - lengths
        with self._disk_errors():
            self._documents.write(starts.astype(DOCUMENT_DTYPE))
            rest = tokens.astype(self._dtype)
            while len(rest):
                if self._in_shard == self._shard_tokens:
                    self._close_shard()
                    self._in_shard = 0
                    self._tokens = self._reopen(shard_name(len(self._shards)), 0)
                piece, rest = np.split(rest, [self._shard_tokens - self._in_shard])
                self._tokens.write(piece)
                self._in_shard += len(piece)
        self._max_token = max(self._max_token, int(tokens.max()))
        self.n_tokens += len(tokens)
        self.n_documents += len(lengths)
        self.text_bytes += text_bytes

    def commit(self, cursor: Any) -> None:
        """Makes everything appended so far durable, together with `cursor`, the position at which the reader
        continues."""
        journal = {
            "identity": self._identity,
            "cursor": cursor,
            "n_tokens": self.n_tokens,
            "n_documents": self.n_documents,
            "text_bytes": self.text_bytes,
            "max_token": self._max_token,
            "left_out": dataclasses.asdict(self.left_out),
            "shards": [dataclasses.asdict(shard) for shard in self._shards],
        }
        with self._disk_errors():
            # Data first: the journal must never record bytes that a power failure could still lose.
            self._tokens.sync()
            self._documents.sync()
            _write_atomically(self._partial / JOURNAL, json.dumps(journal) + "\n")
        self.cursor = cursor

    def finish(self) -> ShardSource:
        """Completes the folder and opens it. Raises UserError, and leaves nothing, if there was no text at all."""
        if self.n_tokens == 0:
            with self._disk_errors():
                for file in self._partial.iterdir():
                    file.unlink()
                self._partial.rmdir()
            why = f" ({self.left_out})" if self.left_out.counts else ""
            raise UserError(f"{self._folder}: the input holds no text{why}; nothing was written")
        with self._disk_errors():
            self._close_shard()
            self._documents.sync()
            _read_back(self._partial / DOCUMENTS, self._documents.sha256())
            index = Index(
                dtype=self._dtype.name,
                n_tokens=self.n_tokens,
                n_documents=self.n_documents,
                max_token=self._max_token,
                text_bytes=self.text_bytes,
                shard_tokens=self._shard_tokens,
                tokenizer=self._tokenizer,
                shards=tuple(self._shards),
                documents_sha256=self._documents.sha256(),
                recipe=self._recipe,
                left_out=self.left_out.counts,
                left_out_first=self.left_out.first,
            )
            # If killed before the rename, the journal resumes. If killed after it, `clear_journal` of the next run
            # removes it.
            _write_atomically(self._partial / INDEX, index.to_json())
            ShardSource(self._partial)  # verified as a run will read it, before the rename
            os.rename(self._partial, self._folder)
            _sync_folder(self._folder.parent)
            clear_journal(self._folder)
        return ShardSource(self._folder)

    def _restore(self) -> None:
        (self._partial / INDEX).unlink(missing_ok=True)
        path = self._partial / JOURNAL
        if not path.is_file():
            return
        try:
            journal = json.loads(path.read_text(encoding="utf-8"))
            before = dict(journal["identity"])
            self._shards = [Shard(**shard) for shard in journal["shards"]]
            self.n_tokens, self.n_documents = int(journal["n_tokens"]), int(journal["n_documents"])
            self.text_bytes, self._max_token = int(journal["text_bytes"]), int(journal["max_token"])
            self.left_out = LeftOut(dict(journal["left_out"]["counts"]), tuple(journal["left_out"]["first"]))
            self.cursor = journal["cursor"]
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{path} is damaged; delete {self._partial} to start over") from None
        changed = [key for key, value in self._identity.items() if before.get(key) != value]
        if changed:
            raise UserError(
                f"{self._partial} is the unfinished work of another command, or its inputs changed since "
                f"({', '.join(changed)} differ); delete it to start over, or choose another folder"
            )
        for shard in self._shards:
            file = self._partial / shard.file
            if not file.is_file() or file.stat().st_size != shard.tokens * self._dtype.itemsize:
                raise RunError(f"{file} is missing or truncated; delete {self._partial} to start over")

    def _reopen(self, name: str, size: int) -> _HashedFile:
        path = self._partial / name
        if size and (not path.is_file() or path.stat().st_size < size):
            raise RunError(f"{path} is missing or truncated; delete {self._partial} to start over")
        return _HashedFile(path, size)

    def _close_shard(self) -> None:
        self._tokens.sync()
        self._tokens.close()
        path = self._partial / shard_name(len(self._shards))
        _read_back(path, self._tokens.sha256())
        sampled = content_digest(OpenFile(path))
        self._shards.append(Shard(path.name, self._in_shard, self._tokens.sha256(), sampled))

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"writing {self._partial} failed: {reason(error)}; free space or fix the folder, then run the same "
                "command again: it resumes where it stopped"
            ) from error


class _HashedFile:
    """A file open for appending after its first `size` bytes, and the sha256 of its whole contents."""

    def __init__(self, path: Path, size: int) -> None:
        # Unbuffered: appended blocks are large, and closing the file on a full disk must not try to write again.
        self._file = path.open("a+b", buffering=0)
        self._file.truncate(size)
        self._digest = hashlib.sha256()
        self._file.seek(0)
        while block := self._file.read(1 << 22):
            self._digest.update(block)

    def write(self, array: np.ndarray) -> None:
        self._digest.update(array.data)
        rest = array.data.cast("B")
        while rest:
            rest = rest[self._file.write(rest) :]

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def sha256(self) -> str:
        return self._digest.hexdigest()


def _read_back(path: Path, sha256: str) -> None:
    """Raises RunError if `path` does not hold what was written to it."""
    drop_from_memory(path)
    if file_sha256(path) != sha256:
        raise RunError(
            f"{path} does not hold what was written into it, so its storage loses data; choose another folder, and "
            "delete this one"
        )


def clear_journal(folder: Path) -> None:
    """Removes the journal left in a complete folder if `finish` was killed right after its last step."""
    if (folder / INDEX).is_file():
        (folder / JOURNAL).unlink(missing_ok=True)


def _write_atomically(path: Path, text: str) -> None:
    """Replaces `path` so that after a crash it holds either the old text or the new one, never a part."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
