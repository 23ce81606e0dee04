"""Runs without data sources, on text that the package makes itself (`data.builtin`): the quickstart's, which is the
source of this machine's Python standard library, and examples of rules, from which a small model learns in context."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gpt3_jax.cluster.agreement import is_lead, together
from gpt3_jax.cluster.log import log
from gpt3_jax.cluster.shared_folder import require_shared
from gpt3_jax.config import Config, SourceConfig, replace
from gpt3_jax.data import stdlib_text
from gpt3_jax.data.in_context import shards
from gpt3_jax.errors import UserError
from gpt3_jax.train.checkpoint.run_folder import CHECKPOINTS
from gpt3_jax.train.loop import Result


@dataclasses.dataclass(frozen=True)
class Builtin:
    """A configuration with its data sources, and baselines for its result."""

    config: Config
    compressors: dict[str, float]
    """Bits per byte of general compressors on the quickstart's held-out text; empty except in the lead process."""


def wanted(config: Config) -> bool:
    """Whether a configuration uses text of the package's own: no data sources, and the byte tokenizer."""
    return not config.data.train and config.data.tokenizer == "bytes"


def prepare(config: Config) -> Builtin:
    """Writes the text's token shards into the run folder, or finds them there. Call after `setup.check`.

    Raises:
        UserError: an invalid configuration; sources for only one of training and evaluation; the run has begun on other
            text.
        RunError: the run folder cannot be written.
    """
    if config.data.eval:
        raise UserError("data.eval is set but data.train is empty; set both, or neither for the quickstart's text")
    run_dir = Path(config.train.run_dir)
    require_shared(run_dir)
    begun = any((run_dir / CHECKPOINTS).glob("*"))
    compressors: dict[str, float] = {}
    what = "the quickstart's text" if config.data.builtin == "stdlib" else "examples of rules"
    with together(f"writing {what}"):
        # another process's library may be a different patch version: each would replace the other's shards
        if is_lead() and config.data.builtin == "stdlib":
            text = stdlib_text.prepare(run_dir / "data", begun=begun)
            log.info(
                f"text: the Python standard library on this machine, {text.train_files} files to train on, "
                f"{text.heldout_files} held out ({len(text.heldout_bytes):,} bytes)"
            )
            compressors = stdlib_text.compressors(text.heldout_bytes)
        elif is_lead():
            log.info(f"text: {shards.DOCUMENTS:,} documents, each examples of one rule")
            shards.prepare(run_dir / "data", config.data.seed, config.model.n_ctx, begun)
    train, heldout = (SourceConfig(path=str(run_dir / "data" / name)) for name in ("train", "heldout"))
    return Builtin(replace(config, data={"train": (train,), "eval": (heldout,)}), compressors)


def verdict(builtin: Builtin, result: Result) -> str:
    """Formats held-out bits per byte beside the compressors'."""
    assert result.evaluation is not None
    rows = {"this model": result.evaluation.bits_per_byte, **builtin.compressors}
    width = max(map(len, rows))
    return "\n".join(
        ["held-out text, bits per byte:", *(f"  {name:{width}}  {bits:.3f}" for name, bits in rows.items())]
    )
