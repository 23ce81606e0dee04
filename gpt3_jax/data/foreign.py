"""Reads tokens that other programs wrote, in their own format: files of ids (nanoGPT, llm.c, modded-nanogpt, NumPy) and
Megatron's .bin with its .idx."""

from __future__ import annotations

import bisect
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from gpt3_jax.data.files import Numbers, OpenFile, content_digest, stamp
from gpt3_jax.data.token_types import Layout, check_ids, layout
from gpt3_jax.errors import RunError, UserError

_MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
_FAIRSEQ_MAGIC = b"TNTIDX\x00\x00"
_MEGATRON_VERSION = 1
_MEGATRON_HEADER = 34
# Megatron's type codes. 9 and 10 come from fairseq, which defined the format.
_MEGATRON_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}
_PART = 1 << 20


class _OneFile:
    """Base of sources whose tokens are contiguous in one file."""

    tokenizer_fingerprint: str | None = None
    n_documents: int | None = None
    max_token: int | None = None

    def _open(self, file: OpenFile, found: Layout) -> None:
        self.path = file.path
        self.dtype: np.dtype[Any] = found.dtype
        self.n_tokens = found.count
        self._tokens = Numbers(file, found.dtype, found.offset, found.count)
        self._stamp = stamp(file.path)
        self._digest = content_digest(file)
        name = f"{found.dtype.name} {found.count} {self._digest}\n"
        self.fingerprint = hashlib.sha256(name.encode()).hexdigest()

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens start .. start + count - 1, in their type on disk [count]."""
        if start < 0 or start + count > self.n_tokens:
            raise ValueError(f"{self.path}: tokens {start} to {start + count} of {self.n_tokens}")
        return self._tokens.read(start, count)

    def check_files(self) -> None:
        """Raises RunError if the file changed since it was opened, as far as samples show."""
        if stamp(self.path) != self._stamp and content_digest(OpenFile(self.path)) != self._digest:
            raise RunError(f"{self.path} changed since it was opened; restore it")

    def verify(self, n_vocab: int | None = None) -> None:
        """Reads every id, because the formats have no checksums. Raises RunError for an id outside the vocabulary."""
        for start in range(0, self.n_tokens, _PART):
            ids = self.read(start, min(_PART, self.n_tokens - start))
            bad = np.flatnonzero((ids < 0) | (ids >= n_vocab)) if n_vocab else np.flatnonzero(ids < 0)
            if bad.size:
                raise RunError(
                    f"{self.path} holds token id {ids[bad[0]]} at token {start + bad[0]}; expected 0 to "
                    f"{n_vocab - 1 if n_vocab else 'the largest'}"
                )


class RawSource(_OneFile):
    """A file of token ids with a known header (llm.c, modded-nanogpt, NumPy) or none (nanoGPT).

    Args:
      path: the file.
      dtype: type of its ids; "auto": from the header or the ids, see `token_types.layout`.
      n_vocab: vocabulary size of the model that reads it; None: any.
      known: numpy's name of the type that an index beside it records, if there is one.

    Raises:
      UserError: the file is missing, empty or of another kind; its type is ambiguous or impossible.
      RunError: it cannot be read, or is truncated.
    """

    def __init__(self, path: str | Path, dtype: str = "auto", n_vocab: int | None = None, known: str | None = None):
        file = OpenFile(path)
        if file.size == 0:
            raise UserError(f"{path} is empty; give a source that is not empty")
        found = layout(file, dtype, known, n_vocab)
        if found.count == 0:
            raise UserError(f"{path} holds no tokens; give a source that is not empty")
        self._open(file, found)

    def document_at(self, position: int) -> int | None:
        """None: the format does not record documents."""
        return None


class MegatronSource(_OneFile):
    """Megatron-LM's indexed dataset: PREFIX.bin and PREFIX.idx. Threads may read at once.

    The index holds a header (magic, version, type of ids, numbers of sequences and documents), the length of each
    sequence, its byte offset, and the first sequence of each document (with one more entry at the end).

    Args:
      prefix: path without .bin or .idx.
      dtype: type of the ids according to the user; "auto", or the type that the index records.
      n_vocab: vocabulary size of the model that reads it; None: any.

    Raises:
      UserError: a missing file, an index of another format, an empty dataset, ids outside the vocabulary.
      RunError: the index is truncated, the sizes of the two files disagree, or one cannot be read.
    """

    def __init__(self, prefix: str | Path, dtype: str = "auto", n_vocab: int | None = None) -> None:
        path, index = f"{prefix}.bin", f"{prefix}.idx"
        table, file = OpenFile(index), OpenFile(path)
        head = table.bytes_at(0, min(table.size, _MEGATRON_HEADER))
        if head.startswith(_FAIRSEQ_MAGIC):
            raise UserError(f"{index} is fairseq's older format (TNTIDX); build the dataset again as mmap (MMIDIDX)")
        if head[:9] != _MEGATRON_MAGIC:
            raise UserError(f"{index} does not begin with MMIDIDX; it is not a Megatron index")
        if len(head) < _MEGATRON_HEADER:
            raise RunError(f"{index} is truncated inside its header; fetch it again")
        version, sequences, documents = (int(np.frombuffer(head, "<u8", 1, at)[0]) for at in (9, 18, 26))
        code = head[17]
        if version != _MEGATRON_VERSION:
            raise UserError(f"{index} is of version {version}; this program reads version {_MEGATRON_VERSION}")
        if code not in _MEGATRON_DTYPES:
            raise UserError(f"{index} says that ids are of type code {code}; expected whole numbers (codes 1-5, 8-10)")
        said = np.dtype(_MEGATRON_DTYPES[code])
        if dtype not in ("auto", said.name):
            raise UserError(f"{path}: dtype is {dtype}, but {index} says {said.name}; leave dtype out")
        if sequences == 0 or documents < 2:
            raise UserError(f"{path} holds no documents; give a source that is not empty")
        # One more byte per sequence (multimodal "modes") may follow. It is not needed.
        if table.size < _MEGATRON_HEADER + 12 * sequences + 8 * documents:
            raise RunError(
                f"{index} has {table.size} bytes, too few for its {sequences} sequences and {documents - 1} documents; "
                "it is truncated, fetch it again"
            )
        lengths = Numbers(table, np.dtype("<i4"), _MEGATRON_HEADER, sequences)
        at = _MEGATRON_HEADER + 4 * sequences
        self._offsets = Numbers(table, np.dtype("<i8"), at, sequences)
        self._firsts = Numbers(table, np.dtype("<i8"), at + 8 * sequences, documents)
        self.n_documents = documents - 1
        if file.size == 0:
            raise UserError(f"{path} is empty; give a source that is not empty")
        _check_contiguous(index, lengths, self._offsets, said.itemsize, file.size)
        _check_ascending(index, self._firsts, sequences)
        found = Layout(said, 0, file.size // said.itemsize)
        check_ids(file, found, n_vocab)
        self._open(file, found)

    def document_at(self, position: int) -> int | None:
        """Index of the document, from 0, that holds the token at `position`."""
        sequence = bisect.bisect_right(self._offsets, position * self.dtype.itemsize) - 1
        return bisect.bisect_right(self._firsts, sequence) - 1


def _check_contiguous(index: str, lengths: Numbers, offsets: Numbers, itemsize: int, size: int) -> None:
    """Checks that sequences are contiguous over the whole .bin, so that positions in it are positions in the stream."""
    position = 0
    for first in range(0, len(lengths), _PART):
        count = min(_PART, len(lengths) - first)
        sizes = lengths.read(first, count).astype(np.int64) * itemsize
        starts = position + np.cumsum(sizes) - sizes
        wrong = np.flatnonzero((starts != offsets.read(first, count)) | (sizes < 0))
        if wrong.size:
            raise RunError(
                f"{index}: sequence {first + wrong[0]} does not begin where the one before ends; it is damaged, "
                "or not a dataset that Megatron's builder wrote"
            )
        position = int(starts[-1] + sizes[-1])
    if position != size:
        raise RunError(
            f"{index} counts {position} bytes of ids but its .bin has {size}; one of the two is truncated or of "
            "another dataset"
        )


def _check_ascending(index: str, firsts: Numbers, sequences: int) -> None:
    before = 0
    for first in range(0, len(firsts), _PART):
        values = firsts.read(first, min(_PART, len(firsts) - first))
        if (first == 0 and values[0] != 0) or values[0] < before or (np.diff(values) < 0).any():
            break
        before = int(values[-1])
    else:
        if before == sequences:
            return
    raise RunError(f"{index}: its document positions do not ascend from 0 to {sequences}; it is damaged")
