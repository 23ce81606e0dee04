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


def ensure(folder: Path, recipe: Mapping[str, object], documents: Iterable[bytes], begun: bool = False) -> None:
    """Writes token shards to FOLDER, or leaves those there if they are intact and of the same recipe.

    Several processes may call this at once.

    Args:
      recipe: describes the documents; another recipe replaces the shards.
      documents: one after the other, each without its end-of-text.
      begun: whether a run has begun on the shards. They are not replaced then.

    Raises:
      UserError: a run has begun on shards of another recipe.
      RunError: the folder cannot be written.
    """
    found = _recipe(folder)
    if found == recipe:
        return
    if begun and found is not None:
        raise UserError(
            f"the run in {folder.parent.parent} began on other text than this version and configuration make; "
            "set another train.run_dir, or go on with the version and configuration that it began with"
        )
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
                if _recipe(folder) != recipe:
                    raise
    except FileNotFoundError:
        # Another process moved the old folder away first. It will also put the same text in place.
        if _recipe(folder) != recipe:
            raise RunError(f"{folder} was taken away while it was being written; run again") from None
    except OSError as error:
        raise RunError(f"cannot write {folder}: {reason(error)}; free space or choose another folder") from error


def _recipe(folder: Path) -> Mapping[str, object] | None:
    """What the shards there were made by; None if there are none or they are damaged."""
    if status(folder) is None:
        return None
    try:
        source = ShardSource(folder)
        source.verify()
    except (UserError, RunError):
        return None
    return source.index.recipe


def _write(folder: Path, documents: Iterable[bytes], recipe: dict[str, object]) -> None:
    tokenizer = ByteTokenizer()
    with ShardWriter(folder, tokenizer, recipe) as writer:
        for data in documents:
            tokens = np.append(np.frombuffer(data, np.uint8).astype(np.uint16), np.uint16(tokenizer.eot))
            writer.append(tokens, np.array([len(tokens)]), len(data))
        writer.finish()
