"""Reads a run's trained parameters, for what comes after training."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from gpt3_jax.config import Config, from_dict
from gpt3_jax.environment import start_devices
from gpt3_jax.errors import UserError, require_type
from gpt3_jax.model.params import Params, abstract
from gpt3_jax.train.checkpoint import CheckpointReader
from gpt3_jax.train.loop import CHECKPOINTS, say_to_stderr


def load_trained(run_dir: str | os.PathLike[str], say: Callable[[str], None] = say_to_stderr) -> tuple[Config, Params]:
    """Configuration and fp32 parameters of a run's newest checkpoint, on the first local device.

    Args:
        run_dir: the folder that training wrote (``train.run_dir``).
        say: is given a line when the newest checkpoint is damaged and the one before is taken.

    Raises:
        UserError: no such folder, or no checkpoint in it.
        RunError: there are checkpoints, but none can be read.
    """
    require_type("the run folder", run_dir, (str, os.PathLike), "a path")
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        what = "is a file" if Path(run_dir).exists() else "does not exist"
        raise UserError(f"run folder {str(run_dir)!r} {what}; expected the train.run_dir of a run")
    start_devices()
    reader = CheckpointReader(run_dir / CHECKPOINTS, say=say)
    newest = reader.newest_record()
    if newest is None:
        raise UserError(
            f"{str(run_dir)!r} holds no checkpoint; expected the train.run_dir of a run, whose checkpoints are in its "
            f"folder {CHECKPOINTS}"
        )
    restored = reader.restore(abstract(from_dict(newest[1]["config"]).model), only="params")
    if restored is None:
        raise UserError(f"{str(run_dir)!r} has lost its checkpoints while they were read; try again")
    return from_dict(restored.record["config"]), restored.state
