"""Reads a run's trained parameters for use after training."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

from gpt3_jax.config import Config, ParallelConfig, from_dict
from gpt3_jax.environment import start_devices
from gpt3_jax.errors import RunError, UserError, require_type
from gpt3_jax.model.params import Params, abstract
from gpt3_jax.paths import local_path
from gpt3_jax.train.checkpoint.reader import CheckpointReader
from gpt3_jax.train.checkpoint.run_folder import CHECKPOINTS
from gpt3_jax.train.state import parameter_shardings


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run has trained."""

    config: Config
    params: Params
    """In fp32, unless `each` made them something else."""
    tokens: int
    """Tokens that they were trained on."""


def load_trained(
    run_dir: str | os.PathLike[str],
    *,
    mesh: Mesh | None = None,
    parallel: ParallelConfig = ParallelConfig(),
    each: Callable[[str, jax.Array], jax.Array] | None = None,
) -> Trained:
    """Configuration and parameters of a run's newest checkpoint.

    Args:
        run_dir: the folder that training wrote (``train.run_dir``).
        mesh: where to load to: each device reads its own shards. None: the first local device.
        parallel: with a mesh, its stage says how the parameters are sharded, as in training.
        each: gets every parameter with its name, in fp32, and returns what takes its place: see
            `CheckpointReader.restore`.

    Raises:
        UserError: no such folder, or no checkpoint in it; a dimension that the axes of the mesh do not divide.
        RunError: the folder may not be read; there are checkpoints, but none can be read.
    """
    reader, config = _newest(run_dir)
    model = config.model
    wanted = abstract(model)
    if mesh is not None:
        wanted = wanted.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            parameter_shardings(model, mesh, parallel.stage),
        )
    under = "params"
    by_path = None if each is None else lambda path, array: each(path.removeprefix(f"{under}/"), array)
    restored = reader.restore(wanted, only=under, each=by_path)
    if restored is None:
        raise UserError(f"{os.fspath(run_dir)!r} has lost its checkpoints while they were read; try again")
    return Trained(from_dict(restored.record["config"]), restored.state, restored.tokens)


def config_of(run_dir: str | os.PathLike[str]) -> Config:
    """The configuration of a run's newest checkpoint, without its arrays. Raises as `load_trained`."""
    return _newest(run_dir)[1]


def _newest(run_dir: str | os.PathLike[str]) -> tuple[CheckpointReader, Config]:
    """What reads a run's checkpoints, and the configuration of the newest."""
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
    return reader, from_dict(newest[1]["config"])
