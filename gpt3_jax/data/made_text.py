"""Token shards of text that the package makes itself, as byte tokens: written once, reused when intact."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from gpt3_jax.data.files import reason, status
from gpt3_jax.data.shards import ShardSource
from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.data.writer import ShardWriter
from gpt3_jax.errors import RunError, UserError


def ensure(folder: Path, recipe: Mapping[str, object], documents: Iterable[bytes]) -> None:
    """Writes token shards to FOLDER, or leaves those there if they are intact and of the same recipe.

    Several processes may call this at once.

    Args:
      recipe: describes the documents; another recipe replaces the shards.
      documents: one after the other, each without its end-of-text.

    Raises:
      RunError: the folder cannot be written.
    """
    if _intact(folder, recipe):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Written under a unique name and then renamed, because another process may be doing the same.
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            _write(Path(temporary) / "new", documents, dict(recipe))
            if folder.exists():
                os.rename(folder, Path(temporary) / "old")
            try:
                os.rename(Path(temporary) / "new", folder)
            except OSError:
                if not _intact(folder, recipe):
                    raise
    except FileNotFoundError:
        # Another process moved the old folder away first. It will also put the same text in place.
        if not _intact(folder, recipe):
            raise RunError(f"{folder} was taken away while it was being written; run again") from None
    except OSError as error:
        raise RunError(f"cannot write {folder}: {reason(error)}; free space or choose another folder") from error


def _intact(folder: Path, recipe: Mapping[str, object]) -> bool:
    if status(folder) is None:
        return False
    try:
        source = ShardSource(folder)
        source.verify()
    except (UserError, RunError):
        return False
    return source.index.recipe == recipe


def _write(folder: Path, documents: Iterable[bytes], recipe: dict[str, object]) -> None:
    tokenizer = ByteTokenizer()
    with ShardWriter(folder, tokenizer, recipe) as writer:
        for data in documents:
            tokens = np.append(np.frombuffer(data, np.uint8).astype(np.uint16), np.uint16(tokenizer.eot))
            writer.append(tokens, np.array([len(tokens)]), len(data))
        writer.finish()
