"""Reads a run's trained parameters for use after training."""

from __future__ import annotations

import os
from pathlib import Path

from gpt3_jax.config import Config, from_dict
from gpt3_jax.environment import start_devices
from gpt3_jax.errors import RunError, UserError, require_type
from gpt3_jax.model.params import Params, abstract
from gpt3_jax.paths import local_path
from gpt3_jax.train.checkpoint.reader import CheckpointReader
from gpt3_jax.train.checkpoint.run_folder import CHECKPOINTS


def load_trained(run_dir: str | os.PathLike[str]) -> tuple[Config, Params]:
    """Configuration and fp32 parameters of a run's newest checkpoint, on the first local device.

    Args:
        run_dir: the folder that training wrote (``train.run_dir``).

    Raises:
        UserError: no such folder, or no checkpoint in it.
        RunError: the folder may not be read; there are checkpoints, but none can be read.
    """
    require_type("the run folder", run_dir, (str, os.PathLike), "a path")
    run_dir = Path(local_path(run_dir, "run folder"))
    try:
        os.listdir(run_dir)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else "is a file"
        raise UserError(f"run folder {str(run_dir)!r} {what}; expected the train.run_dir of a run") from None
    except OSError as error:
        raise RunError(f"cannot read the run folder {str(run_dir)!r}: {error.strerror}") from None
    start_devices()
    reader = CheckpointReader(run_dir / CHECKPOINTS)
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
