"""A run that has just begun: a checkpoint with random parameters, for what only needs some model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt3_jax.config import Config, from_dict, to_dict
from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.model import forward
from gpt3_jax.parallel.mesh import make_mesh
from gpt3_jax.train.checkpoint.store import CheckpointStore
from gpt3_jax.train.checkpoint.trained import load_trained
from gpt3_jax.train.state import init_state

MODEL = {
    "n_layers": 1, "attention_pattern": ["dense"], "d_model": 16, "n_heads": 2, "n_ctx": 128, "n_vocab": 257,
    "vocab_multiple": 16, "init_std": 0.5, "dtype": "float32",
}  # fmt: skip


def write_run(folder: Path, **model: Any) -> Path:
    """Writes the run's first checkpoint; its tokenizer is bytes."""
    values = to_dict(Config())
    values["model"] |= MODEL | model
    values["data"]["tokenizer"] = "bytes"
    values["parallel"]["data"] = 1
    config = from_dict(values)
    state = init_state(config, make_mesh(config.parallel, jax.devices()[:1]))
    store = CheckpointStore(folder / "checkpoints", keep_last=1, keep_every_tokens=0)
    store.save(0, 0, state, {"config": values}, wait=True)
    return folder


@functools.cache
def _forward(run: Path) -> Callable[[list[int]], np.ndarray]:
    """Log-probabilities [T, V] of the tokens after each of some, which are padded: one program for all lengths."""
    trained = load_trained(run)
    n_ctx = trained.config.model.n_ctx

    @jax.jit
    def of_next(ids_1T: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(forward(trained.params, ids_1T, trained.config.model)[0].astype(jnp.float32))

    return lambda ids: np.asarray(of_next(jnp.array([ids + [0] * (n_ctx - len(ids))])))


def logprobs(run: Path, context: str, continuation: str) -> np.ndarray:
    """Of each byte of the continuation, by the model's plain forward pass."""
    ids = ByteTokenizer().encode(context + continuation)
    of_next = _forward(run)(ids)
    n = len(continuation.encode())
    return np.array([of_next[i - 1, ids[i]] for i in range(len(ids) - n, len(ids))])
