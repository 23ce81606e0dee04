"""Tokens that other programs wrote, read as they are: nanoGPT's .bin and Megatron's .bin with its .idx."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from gpt3_jax.errors import RunError, UserError

_MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
_MEGATRON_VERSION = 1
_MEGATRON_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_SAMPLES = 64
_SAMPLE_BYTES = 1 << 16


class NanoGptSource:
    """A .bin of token ids and nothing else, as nanoGPT's prepare.py writes. Threads may read at once.

    Args:
      path: the file.
      dtype: type of its ids, which the file does not say.

    Raises:
      UserError: no such file, an empty one, or a size that is not a whole number of ids.
    """

    tokenizer_fingerprint: str | None = None
    n_documents: int | None = None
    max_token: int | None = None

    def __init__(self, path: str | Path, dtype: str) -> None:
        self.path = str(path)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.n_tokens, self._map = _map_tokens(Path(path), self.dtype)
        self.fingerprint = _sampled_fingerprint(self._map)

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens start .. start + count - 1, in the type on disk [count]."""
        return _read(self, self._map, start, count)

    def document_at(self, position: int) -> int | None:
        """None: the format knows no documents."""
        return None

    def verify(self) -> None:
        """Nothing to compare with: the format has no checksums."""


class MegatronSource:
    """Megatron-LM's indexed dataset: PREFIX.bin and PREFIX.idx. Threads may read at once.

    The index holds a header (magic, version, type of ids, counts of sequences and documents), the length of each
    sequence, its byte offset, and the sequence with which each document begins (one more entry at the end).

    Args:
      prefix: path without .bin or .idx.

    Raises:
      UserError: a missing file, an index of another format, an empty dataset.
      RunError: the index is truncated, or the sizes of the two files do not agree.
    """

    tokenizer_fingerprint: str | None = None
    max_token: int | None = None

    def __init__(self, prefix: str | Path) -> None:
        self.path = f"{prefix}.bin"
        index = Path(f"{prefix}.idx")
        if not index.is_file():
            raise UserError(f"{index} is not there; a Megatron dataset is a .bin with its .idx beside it")
        raw = np.memmap(index, np.uint8, mode="r") if index.stat().st_size else np.empty(0, np.uint8)
        if raw[:9].tobytes() != _MEGATRON_MAGIC:
            raise UserError(f"{index} does not begin with MMIDIDX; it is not a Megatron index")
        if len(raw) < 34:
            raise RunError(f"{index} is truncated inside its header; fetch it again")
        version = int(raw[9:17].view("<u8")[0])
        code = int(raw[17])
        sequences, documents = (int(raw[at : at + 8].view("<u8")[0]) for at in (18, 26))
        if version != _MEGATRON_VERSION:
            raise UserError(f"{index} is of version {version}; this program reads version {_MEGATRON_VERSION}")
        if code not in _MEGATRON_DTYPES:
            raise UserError(f"{index} says that ids are of type code {code}; expected whole numbers (codes 1-5, 8)")
        self.dtype = np.dtype(_MEGATRON_DTYPES[code])
        if sequences == 0 or documents < 2:
            raise UserError(f"{self.path} holds no documents; give a source that is not empty")
        # A trailing byte a sequence (multimodal "modes") may follow; it is not needed.
        if len(raw) < 34 + 12 * sequences + 8 * documents:
            raise RunError(
                f"{index} has {len(raw)} bytes, too few for its {sequences} sequences and {documents - 1} documents; "
                "it is truncated, fetch it again"
            )
        lengths = raw[34 : 34 + 4 * sequences].view("<i4")
        at = 34 + 4 * sequences
        offsets = raw[at : at + 8 * sequences].view("<i8")
        self._offsets = offsets
        self._first_sequences = raw[at + 8 * sequences : at + 8 * (sequences + documents)].view("<i8")
        self.n_documents: int | None = documents - 1
        self.n_tokens, self._map = _map_tokens(Path(self.path), self.dtype)
        _check_contiguous(index, lengths, offsets, self.dtype.itemsize, self.n_tokens)
        first = self._first_sequences
        if first[0] != 0 or first[-1] != sequences or (np.diff(first) < 0).any():
            raise RunError(f"{index}: its document positions do not ascend from 0 to {sequences}; it is damaged")
        self.fingerprint = _sampled_fingerprint(self._map)

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens start .. start + count - 1, in the type on disk [count]."""
        return _read(self, self._map, start, count)

    def document_at(self, position: int) -> int | None:
        """Number of the document, from 0, that holds the token at `position`."""
        sequence = int(np.searchsorted(self._offsets, position * self.dtype.itemsize, side="right")) - 1
        return int(np.searchsorted(self._first_sequences, sequence, side="right")) - 1

    def verify(self) -> None:
        """Nothing to compare with: the format has no checksums. Sizes were checked when it was opened."""


def _map_tokens(path: Path, dtype: np.dtype[Any]) -> tuple[int, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path} is not there; expected a file of token ids")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path} is empty; give a source that is not empty")
    if size % dtype.itemsize:
        raise RunError(
            f"{path} has {size} bytes, not a whole number of {dtype.name} ids; it is truncated, or its dtype is another"
        )
    return size // dtype.itemsize, np.memmap(path, dtype, mode="r")


def _read(source: NanoGptSource | MegatronSource, tokens: np.ndarray, start: int, count: int) -> np.ndarray:
    if start < 0 or start + count > source.n_tokens:
        raise ValueError(f"{source.path}: tokens {start} to {start + count} of {source.n_tokens}")
    return np.array(tokens[start : start + count])


def _check_contiguous(index: Path, lengths: np.ndarray, offsets: np.ndarray, itemsize: int, n_tokens: int) -> None:
    """Sequences must lie end to end over the whole .bin: then positions in it are positions in the stream."""
    position = 0
    for first in range(0, len(lengths), 1 << 20):
        sizes = lengths[first : first + (1 << 20)].astype(np.int64) * itemsize
        starts = position + np.cumsum(sizes) - sizes
        wrong = np.flatnonzero((starts != offsets[first : first + (1 << 20)]) | (sizes < 0))
        if wrong.size:
            raise RunError(
                f"{index}: sequence {first + wrong[0]} does not begin where the one before ends; it is damaged, "
                "or not a dataset that Megatron's builder wrote"
            )
        position = int(starts[-1] + sizes[-1])
    if position != n_tokens * itemsize:
        raise RunError(
            f"{index} counts {position} bytes of ids but its .bin has {n_tokens * itemsize}; one of the two is "
            "truncated or of another dataset"
        )


def _sampled_fingerprint(tokens: np.ndarray) -> str:
    """Tells datasets apart without reading terabytes: the size, and 64 blocks of 64 KiB spread over the file."""
    data = tokens.view(np.uint8)
    digest = hashlib.sha256(f"{tokens.dtype.name} {len(tokens)}\n".encode())
    last = max(0, len(data) - _SAMPLE_BYTES)
    for number in range(_SAMPLES):
        start = last * number // (_SAMPLES - 1)
        digest.update(data[start : start + _SAMPLE_BYTES].data)
    return digest.hexdigest()
