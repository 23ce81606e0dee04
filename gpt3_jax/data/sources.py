"""Opens a source of tokens, whichever program wrote it."""

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
    """A sequence of tokens on disk."""

    path: str
    dtype: np.dtype[Any]
    n_tokens: int
    n_documents: int | None
    """None if the format does not record documents."""
    max_token: int | None
    """The largest id; None if the format does not record it."""
    fingerprint: str
    """Identifies the contents, independent of their path, for the record of a run."""
    tokenizer_fingerprint: str | None
    """Fingerprint of the tokenizer that wrote the ids; None if the format does not record it."""

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens start .. start + count - 1, in their type on disk [count]. Thread-safe."""
        ...

    def document_at(self, position: int) -> int | None:
        """Index of the document that holds the token at `position`; None if the format does not record documents."""
        ...

    def check_files(self) -> None:
        """Raises RunError for a file that changed since it was opened, as far as samples show."""
        ...

    def verify(self, n_vocab: int | None = None) -> None:
        """Reads everything. Compares checksums if the format has them, else checks every id against the vocabulary.

        Raises RunError."""
        ...


def open_source(config: SourceConfig, n_vocab: int | None = None) -> TokenSource:
    """Opens a folder of token shards, a Megatron dataset (PREFIX, PREFIX.bin or PREFIX.idx) or a file of token ids.

    Opening determines the type of the ids and checks samples of them (`token_types.layout`), before anything else is
    read from the file.

    Args:
      config: the source's path, and the type of its ids according to the user.
      n_vocab: vocabulary size of the model that reads it; None: any.

    Raises:
      UserError: config.path holds nothing readable or is empty, or the type of its ids is ambiguous or impossible.
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
