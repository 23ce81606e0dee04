"""Makes a run's folder from a model that was trained elsewhere, and the reverse."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp

from gpt3_jax.config import Config, DataConfig, TrainConfig
from gpt3_jax.data.tokenizer import load_tokenizer
from gpt3_jax.environment import start_devices
from gpt3_jax.errors import UserError
from gpt3_jax.interop.huggingface import from_hf, to_hf
from gpt3_jax.interop.loading import hf_tokenizer_name, require_fits
from gpt3_jax.model.params import decay_mask
from gpt3_jax.paths import local_path
from gpt3_jax.train import optimizer
from gpt3_jax.train.checkpoint.reader import CheckpointReader
from gpt3_jax.train.checkpoint.resume import Data, make_record
from gpt3_jax.train.checkpoint.run_folder import CHECKPOINTS, write_config
from gpt3_jax.train.checkpoint.store import CheckpointStore
from gpt3_jax.train.checkpoint.trained import load_trained
from gpt3_jax.train.schedule import batch_schedule
from gpt3_jax.train.state import TrainState


def run_from_hf(path: str | os.PathLike[str], run_dir: str | os.PathLike[str], tokenizer: str | None = None) -> Config:
    """Writes a run folder whose checkpoint, at 0 tokens, is the model in `path`, with a fresh optimizer state.

    The folder can be used for generation. Training can continue from it with new data and a new recipe
    (``checkpoint.on_change accept``).

    Args:
        tokenizer: as ``data.tokenizer``. None: the folder's own, or, if it holds none, GPT-2's.

    Raises:
        UserError: as `from_hf`; there is no tokenizer, or it does not fit the model; the run folder already holds a
            checkpoint.
        RunError: the folder cannot be written.
    """
    run_dir = Path(local_path(run_dir, "run folder"))
    start_devices()
    if CheckpointReader(run_dir / CHECKPOINTS).checkpoints():
        raise UserError(f"{str(run_dir)!r} holds a run already; choose another folder")
    model, params = from_hf(path)
    folder = Path(os.path.abspath(local_path(path, "model folder")))  # the run may be used from other folders
    tokenizer = tokenizer or hf_tokenizer_name(folder, model)
    loaded = load_tokenizer(tokenizer)
    require_fits(loaded, model, folder)
    batch_tokens = -(-Config().train.batch_tokens // model.n_ctx) * model.n_ctx  # rounded up to whole sequences
    config = Config(
        model=model,
        train=TrainConfig(run_dir=str(run_dir), batch_tokens=batch_tokens),
        data=DataConfig(tokenizer=tokenizer),
    )
    counters = (jnp.zeros((), jnp.uint32) for _ in range(3))
    mask = decay_mask(model, config.optimizer.weight_decay_on)
    state = TrainState(params, optimizer.init(config.optimizer, mask, params), *counters)
    record = make_record(config, batch_schedule(config, 1), Data(fingerprint="", tokenizer=loaded.fingerprint))
    # The checkpoint is written last, because it makes the folder a run.
    store = CheckpointStore(run_dir / CHECKPOINTS, keep_last=1, keep_every_tokens=0)
    write_config(run_dir, config)  # before the checkpoint, which makes the folder a run
    store.save(0, 0, jax.block_until_ready(state), record, wait=True)
    return config


def run_to_hf(run_dir: str | os.PathLike[str], path: str | os.PathLike[str]) -> Config:
    """Writes the newest checkpoint of a run as `to_hf` does. Raises the errors of `load_trained` and `to_hf`."""
    trained = load_trained(run_dir)
    to_hf(trained.params, trained.config.model, path)
    return trained.config
