"""Loads a model to evaluate, with the engine that answers for it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import get_args

import jax

from gpt3_jax.cluster import compilation_cache
from gpt3_jax.cluster.leaving import NoneLeftWaiting
from gpt3_jax.cluster.log import log
from gpt3_jax.cluster.start import shutdown, start
from gpt3_jax.config import DistributedConfig, ParallelConfig
from gpt3_jax.environment import start_devices
from gpt3_jax.errors import UserError
from gpt3_jax.evals.engine import Engine
from gpt3_jax.evals.subject import Subject
from gpt3_jax.generation.generator import Weights
from gpt3_jax.interop.loading import load_model, load_tokenizer_of
from gpt3_jax.model.params import count_params
from gpt3_jax.parallel.mesh import MeshShape, make_mesh


@contextlib.contextmanager
def started(distributed: DistributedConfig) -> Iterator[None]:
    """Joins the other processes of the run, if there are any, and starts the devices; leaves them at the end.

    Raises:
        UserError: the cluster is there but this process was not started as part of it.
        RunError: the processes do not find one another, or one of them failed.
    """
    start(distributed)
    with NoneLeftWaiting():
        start_devices()
        compilation_cache.enable()
        yield
        shutdown()


def load_each(
    folders: Sequence[str | os.PathLike[str]], parallel: ParallelConfig | None = None, weights: Weights | None = None
) -> Iterator[Subject]:
    """`load` of each folder when its turn comes. That all are models is checked first, without reading weights."""
    if len(folders) > 1:
        for folder in folders:
            load_tokenizer_of(folder)
    return (load(folder, parallel, weights) for folder in folders)


def load(
    folder: str | os.PathLike[str], parallel: ParallelConfig | None = None, weights: Weights | None = None
) -> Subject:
    """The newest checkpoint of a run, or a model in Hugging Face's format, on a mesh over all devices.

    Args:
        parallel: the mesh, and the ZeRO stage that says how the weights are kept; None: the first device alone.
        weights: float32 or bfloat16: the compute dtype in place of the model's. int8: the matrices
            rounded to int8 and then once more to the compute dtype, at its memory. Generation leaves out the second
            rounding, as it scales products in fp32. A message says how far the weights are from the checkpoint's.

    Raises:
        UserError: as `load_model` and `make_mesh`; `weights` is none of these.
        RunError: as `load_model`.
    """
    mesh = None if parallel is None else make_mesh(parallel)
    if weights not in (None, *get_args(Weights)):
        raise UserError(f"weights is {weights!r}; expected {', '.join(get_args(Weights))}, or none")
    in_int8 = weights == "int8"
    loaded = load_model(
        folder,
        mesh=mesh,
        parallel=parallel or ParallelConfig(),
        weights="of_int8" if in_int8 else "compute",
        dtype=None if weights == "int8" else weights,
        with_rounding=weights is not None,
    )
    if weights is not None:
        log.info(f"weights in {weights}: {loaded.rounding or 'as the checkpoint has them'}")
    engine = Engine.of(loaded, mesh, parallel, consume=True)
    return Subject(
        name=loaded.name,
        answer=engine.answer,
        tokenizer=loaded.tokenizer,
        config=loaded.config,
        weights=loaded.fingerprint,
        settings={"platform": jax.default_backend(), **({"weights": "int8"} if in_int8 else {})},
        about={
            "folder": os.path.abspath(folder),
            "parameters": count_params(loaded.config),
            "tokens": loaded.tokens_trained,
        },
        computed={
            "device": jax.devices()[0].device_kind,
            "mesh": dict(mesh.shape) if mesh is not None else dataclasses.asdict(MeshShape()),
            "stage": parallel.stage if parallel is not None else 0,
            "batch_tokens": engine.batch_tokens,
        },
    )
