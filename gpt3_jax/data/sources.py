"""Opening a source of tokens, whatever program wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gpt3_jax.config import SourceConfig
from gpt3_jax.data.foreign import MegatronSource, NanoGptSource
from gpt3_jax.data.shards import ShardSource
from gpt3_jax.errors import UserError


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
    """Identifies the contents, for the record of a run."""
    tokenizer_fingerprint: str | None
    """Of the tokenizer that wrote the ids; None when the format does not record it."""

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens start .. start + count - 1, in the type on disk [count]. Safe to call from several threads."""
        ...

    def document_at(self, position: int) -> int | None:
        """Number of the document that holds the token at `position`; None when the format does not know."""
        ...

    def verify(self) -> None:
        """Compares checksums, where the format has them. Raises RunError."""
        ...


def open_source(config: SourceConfig) -> TokenSource:
    """Opens a folder of token shards, a Megatron dataset (PREFIX, PREFIX.bin or PREFIX.idx) or a nanoGPT .bin.

    Raises:
      UserError: nothing that can be read is at config.path, or it is empty.
      RunError: it is truncated or damaged.
    """
    path = Path(config.path)
    if path.is_dir():
        return ShardSource(path)
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    if path.suffix == ".idx" or prefix.with_name(prefix.name + ".idx").is_file():
        return MegatronSource(prefix)
    if path.is_file():
        if path.suffix != ".bin":
            raise UserError(
                f"{path} is a file but not a .bin of token ids; text becomes token shards by `gpt3-jax data tokenize`"
            )
        return NanoGptSource(path, config.dtype)
    partial = path.with_name(path.name + ".partial")
    if partial.is_dir():
        return ShardSource(path)  # raises, saying that the tokenization did not finish
    raise UserError(f"{path} does not exist; expected a folder of token shards or a .bin file")
