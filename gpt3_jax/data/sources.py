"""Opening a source of tokens, whatever program wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gpt3_jax.config import SourceConfig
from gpt3_jax.data.files import is_file, is_folder, regular, status
from gpt3_jax.data.foreign import MegatronSource, RawSource
from gpt3_jax.data.shards import ShardSource, shard_index
from gpt3_jax.errors import RunError, UserError


class TokenSource(Protocol):
    """Tokens on disk, one after the other."""

    path: str
    dtype: np.dtype[Any]
    n_tokens: int
    n_documents: int | None
    """None when the format does not know documents."""
    max_token: int | None
    """The largest id; None when the format does not record it."""
    fingerprint: str
    """Identifies the contents, wherever they lie, for the record of a run."""
    tokenizer_fingerprint: str | None
    """Of the tokenizer that wrote the ids; None when the format does not record it."""

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens start .. start + count - 1, in the type on disk [count]. Safe to call from several threads."""
        ...

    def document_at(self, position: int) -> int | None:
        """Number of the document that holds the token at `position`; None when the format does not know."""
        ...

    def check_files(self) -> None:
        """Raises RunError for a file that is no longer what it was when it was opened, as far as samples tell."""
        ...

    def verify(self, n_vocab: int | None = None) -> None:
        """Reads everything: compares checksums where the format has them, else every id with the vocabulary.

        Raises RunError."""
        ...


def open_source(config: SourceConfig, n_vocab: int | None = None) -> TokenSource:
    """Opens a folder of token shards, a Megatron dataset (PREFIX, PREFIX.bin or PREFIX.idx) or a file of token ids.

    What a file holds is settled here, before anything is read from it: its type, and that samples of it are possible
    ids (`token_types.layout`).

    Args:
      config: where it is, and what the user says of its type.
      n_vocab: of the model that is to read it; None: any.

    Raises:
      UserError: nothing that can be read is at config.path, it is empty, or its type cannot be told or cannot be.
      RunError: it cannot be read, is truncated or damaged, or is not what the index beside it describes.
    """
    path = Path(config.path)
    if is_folder(path):
        shards = ShardSource(path)
        if config.dtype not in ("auto", shards.dtype.name):
            raise UserError(f"{path}: dtype is {config.dtype}, but its index says {shards.dtype.name}; leave dtype out")
        return shards
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    if path.suffix == ".idx" or is_file(prefix.with_name(prefix.name + ".idx")):
        return MegatronSource(prefix, config.dtype, n_vocab)
    if is_file(path):
        if path.suffix not in (".bin", ".npy"):
            raise UserError(
                f"{path} is a file but not a .bin or .npy of token ids; text becomes token shards by "
                "`gpt3-jax data tokenize`"
            )
        index = shard_index(path)
        if index is None:
            return RawSource(path, config.dtype, n_vocab)
        shard = RawSource(path, config.dtype, n_vocab, known=index.dtype)
        shard.tokenizer_fingerprint = index.tokenizer.fingerprint
        return shard
    partial = path.with_name(path.name + ".partial")
    if is_folder(partial):
        return ShardSource(path)  # raises, saying that the tokenization did not finish
    if status(path) is None:
        raise UserError(f"{path} does not exist; expected a folder of token shards or a file of token ids")
    regular(path)  # says what it is: a pipe, a socket, a device
    raise RunError(f"{path} changed while it was opened; try again")
