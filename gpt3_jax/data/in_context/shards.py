"""The generated text as token shards."""

from __future__ import annotations

from pathlib import Path

from gpt3_jax.data import made_text
from gpt3_jax.data.in_context.documents import documents
from gpt3_jax.data.in_context.words import Split

DOCUMENTS = 40_000
"""Documents of the training text. A run that is longer reads it several times."""
HELD_OUT_DOCUMENTS = 512
VERSION = 3
"""Raised when the same seed gives another text. 1 had no columns and no validation split; 2 shifted letters in
compositions."""


def prepare(folder: Path, seed: int, n_ctx: int, begun: bool = False) -> None:
    """Writes FOLDER/train and, of the split "validation", FOLDER/heldout; or reuses them if they are intact and of the
    same seed and context.

    With its end-of-text, a document is as long as the context: every training sequence is one document, from its first
    example on, as a prompt is.

    Args:
      begun: whether a run has begun on the text that is there, which is not replaced then.

    Raises:
      UserError: a run has begun on other text.
      RunError: the folder cannot be written.
    """
    parts: tuple[tuple[str, int, Split], ...] = (
        ("train", DOCUMENTS, "training"),
        ("heldout", HELD_OUT_DOCUMENTS, "validation"),
    )
    for name, count, split in parts:
        recipe = {"text": "in-context", "version": VERSION, "seed": seed, "documents": count, "length": n_ctx - 1}
        text = (document.encode() for document in documents(seed, count, n_ctx - 1, split))
        made_text.ensure(folder / name, recipe, text, begun)
