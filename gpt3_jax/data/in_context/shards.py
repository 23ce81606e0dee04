"""The generated text as token shards."""

from __future__ import annotations

from pathlib import Path

from gpt3_jax.data import made_text
from gpt3_jax.data.in_context.documents import documents
from gpt3_jax.data.in_context.words import Split

DOCUMENTS = 65_536
"""Documents of the training text. A run that is longer reads it several times."""
HELD_OUT_DOCUMENTS = 512
VERSION = 1
"""Raised when the same seed gives another training text."""


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
    recipe = {"text": "in-context", "version": VERSION, "seed": seed, "length": n_ctx - 1}
    train = (text.encode() for text in documents(seed, DOCUMENTS, n_ctx - 1))
    made_text.ensure(folder / "train", {**recipe, "documents": DOCUMENTS}, train, begun)
    # Held-out text is only measured on, so that a run that has begun may go on with another.
    split: Split = "validation"
    heldout = (text.encode() for text in documents(seed, HELD_OUT_DOCUMENTS, n_ctx - 1, split))
    made_text.ensure(folder / "heldout", {**recipe, "documents": HELD_OUT_DOCUMENTS, "split": split}, heldout)
