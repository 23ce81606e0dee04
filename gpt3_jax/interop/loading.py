"""Loads a trained model for evaluation and generation, from a run's folder or from a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from gpt3_jax.cluster.log import log
from gpt3_jax.config import ModelConfig, ParallelConfig
from gpt3_jax.data.files import is_folder, status
from gpt3_jax.data.hf_tokenizer import FILES, has_tokenizer
from gpt3_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt3_jax.errors import RunError, UserError, require_type
from gpt3_jax.interop.huggingface import config_from_hf, from_hf, is_hf
from gpt3_jax.model.params import Params, names, param_table
from gpt3_jax.model.stored import Rounding, Stored, contracted, dequantise, quantise, rounding, stores
from gpt3_jax.paths import local_path
from gpt3_jax.train.checkpoint.integrity import array_checksums, describe, named_leaves, record_digest
from gpt3_jax.train.checkpoint.run_folder import CHECKPOINTS
from gpt3_jax.train.checkpoint.trained import config_of, load_trained

GPT2_TOKENIZER = "r50k_base"
Weights = Literal["float32", "compute", "int8", "of_int8"]
"""float32: as training keeps them; compute: cast as they are loaded to `model.dtype`, which changes no result of
evaluation or generation; int8: for generation, the matrices quantised as they are loaded (`model.stored`); of_int8: the
weights that these stand for, in `model.dtype`, for evaluation."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A trained model and its tokenizer."""

    name: str
    """The folder's own name."""
    config: ModelConfig
    params: Params
    """In the dtype that was asked for."""
    tokenizer: Tokenizer
    fingerprint: str
    """Of the weights (`weights_fingerprint`)."""
    tokens_trained: int | None
    """None for a model that was trained elsewhere."""
    rounding: Rounding | None = None
    """How far the matrices are from the fp32 weights; None where they are these, or where nobody asked."""


def load_model(
    folder: str | os.PathLike[str],
    *,
    tokenizer: str | None = None,
    mesh: Mesh | None = None,
    parallel: ParallelConfig = ParallelConfig(),
    weights: Weights = "float32",
    dtype: Literal["float32", "bfloat16"] | None = None,
    with_rounding: bool = False,
) -> Loaded:
    """Loads the newest checkpoint of a run, or a GPT-2 or GPT-Neo model in Hugging Face's format.

    In a multi-process run, all processes call it, and read from a shared file system.

    Args:
        tokenizer: as ``data.tokenizer``. None: the one that the run records, the Hugging Face folder's own, or, if it
            holds none, GPT-2's.
        mesh: where to load the parameters to; None: one device.
        parallel: with a mesh, its stage says how the parameters are sharded, as in training.
        weights: with "compute", a device holds its shards of the parameters in the compute dtype, and while they are
            loaded of one of them in fp32; with "int8", the matrices are `Stored`, which only `generation` reads; with
            "of_int8", they have the memory of "compute".
        dtype: the compute dtype, in place of the model's own.
        with_rounding: whether to compute how far weights that are cast are from fp32; of int8 it always is.

    Raises:
        UserError: the folder is neither, or holds a model or a tokenizer of another kind; the tokenizer does not fit
            the model; a dimension that the axes of the mesh do not divide.
        RunError: no checkpoint of the run can be read; weights that are not finite where their rounding is computed.
    """
    path = _path(folder)
    name = Path(os.path.abspath(path)).name
    hf = _holds_hf(path)
    config = config_from_hf(path) if hf else config_of(path).model
    config = dataclasses.replace(config, dtype=dtype or config.dtype)
    casts = weights in ("int8", "of_int8") or (weights == "compute" and config.dtype != "float32")
    cast = _Cast(config, weights, with_rounding) if casts else None
    if hf:
        _, params = from_hf(path, mesh=mesh, parallel=parallel, each=cast)
        found = load_tokenizer(tokenizer or hf_tokenizer_name(path, config))
        tokens = None
    else:
        trained = load_trained(path, mesh=mesh, parallel=parallel, each=cast)
        params = trained.params
        found = load_tokenizer(tokenizer or trained.config.data.tokenizer)
        tokens = trained.tokens or None  # a run at 0 tokens is a converted model
    require_fits(found, config, path)
    fingerprint = weights_fingerprint(params, config) if cast is None else cast.fingerprint()
    return Loaded(name, config, params, found, fingerprint, tokens, None if cast is None else cast.rounding(path))


class _Cast:
    """Casts or quantises parameters one by one, and takes what their fingerprint needs before."""

    def __init__(self, config: ModelConfig, weights: Weights, with_rounding: bool = False) -> None:
        self._config, self._weights, self._with_rounding = config, weights, with_rounding
        table = param_table(config)
        self._specs = dict(zip((name.replace(".", "/") for name in names(table)), table.leaves(), strict=True))
        self._entries: dict[str, Any] = {}
        self._roundings: dict[str, Rounding] = {}

    def __call__(self, name: str, array: jax.Array) -> Any:
        own = array[: self._config.n_vocab] if name == "token_embedding" else array
        self._entries |= _fingerprint_entries({name: own})
        spec = self._specs[name]
        if not stores(spec):
            return array.astype(jnp.dtype(self._config.dtype))
        axis = contracted(spec) + (spec.stacked and contracted(spec) >= 0)  # of all layers
        if self._weights in ("int8", "of_int8"):
            made, self._roundings[name] = _quantised(array, axis, *_where(array, axis))
            if self._weights == "int8":
                return made
            stood_for = jax.device_put(_stood_for(made, axis, self._config.dtype), array.sharding)
            self._roundings[name] = _rounding(array, stood_for, axis)  # both roundings: to int8, then to the dtype
            return stood_for
        cast = array.astype(jnp.dtype(self._config.dtype))
        if self._with_rounding:
            self._roundings[name] = _rounding(array, cast, axis)
        return cast

    def rounding(self, folder: Path) -> Rounding | None:
        """Of all matrices; None if it was not computed.

        Raises:
            RunError: a matrix has no rounding error, because a weight is not a finite number.
        """
        for name, found in self._roundings.items():
            if not found.finite:
                raise RunError(
                    f"{name} of the model in {str(folder)!r} has weights that are infinite or not a number; expected "
                    "finite ones: take an earlier checkpoint"
                )
        if not self._roundings:
            return None
        first, *rest = self._roundings.values()
        return sum(rest, first)

    def fingerprint(self) -> str:
        """As `weights_fingerprint` of the parameters before."""
        return record_digest(self._entries)


_rounding = jax.jit(rounding, static_argnames="axis")


@functools.partial(jax.jit, static_argnames=("axis", "values", "scales"))
def _quantised(
    array: jax.Array, axis: int, values: Sharding | None, scales: Sharding | None
) -> tuple[Stored, Rounding]:
    """A parameter in int8, and how far it is from what was given."""
    made = quantise(array, axis)
    if values is not None:
        made = jax.lax.with_sharding_constraint(made, Stored(values, scales))  # type: ignore[arg-type]
    return made, rounding(array, dequantise(made, axis), axis)


@functools.partial(jax.jit, static_argnames=("axis", "dtype"))
def _stood_for(made: Stored, axis: int, dtype: str) -> jax.Array:
    return dequantise(made, axis).astype(jnp.dtype(dtype))


def _where(array: jax.Array, axis: int) -> tuple[Sharding | None, Sharding | None]:
    """Where values and scales lie: as the array does. None: on its one device."""
    if not isinstance(array.sharding, NamedSharding):
        return None, None
    dims = [*array.sharding.spec, *[None] * (array.ndim - len(array.sharding.spec))]
    inputs = dims.pop(axis)
    mesh = array.sharding.mesh
    return NamedSharding(mesh, PartitionSpec(*dims, inputs)), NamedSharding(mesh, PartitionSpec(*dims))


def load_tokenizer_of(folder: str | os.PathLike[str]) -> tuple[Tokenizer, ModelConfig]:
    """A model's tokenizer and configuration, without its weights. Raises the errors of `load_model`."""
    path = _path(folder)
    if _holds_hf(path):
        config = config_from_hf(path)
        found = load_tokenizer(hf_tokenizer_name(path, config))
    else:
        of_run = config_of(path)
        config, found = of_run.model, load_tokenizer(of_run.data.tokenizer)
    require_fits(found, config, path)
    return found, config


def _path(folder: str | os.PathLike[str]) -> Path:
    require_type("the model's folder", folder, (str, os.PathLike), "a path")
    return Path(local_path(folder, "model folder"))


def _holds_hf(path: Path) -> bool:
    """Whether a folder holds a Hugging Face model; if not, it is a run's. Raises UserError for one that is neither."""
    if status(path / CHECKPOINTS) is not None:
        return False
    if is_hf(path):
        return True
    if is_folder(path):
        raise UserError(
            f"{str(path)!r} holds no checkpoint of a run (in its folder {CHECKPOINTS}) and no model in Hugging Face's "
            "format (config.json); expected one of them"
        )
    return False


def hf_tokenizer_name(folder: Path, config: ModelConfig) -> str:
    """The tokenizer of a Hugging Face folder, as ``data.tokenizer``: its own, or GPT-2's, with a message.

    Raises:
        UserError: it holds none, and the vocabulary is too small to be GPT-2's.
    """
    if has_tokenizer(folder):
        return str(folder)
    known = 50257
    if config.n_vocab < known:
        raise UserError(
            f"{str(folder)!r} holds no tokenizer ({FILES}), and its vocabulary of {config.n_vocab} is too small for "
            f"{GPT2_TOKENIZER}, which has {known}; copy the model's tokenizer files into the folder"
        )
    log.info(f"{str(folder)!r} holds no tokenizer ({FILES}); using {GPT2_TOKENIZER}, GPT-2's")
    return GPT2_TOKENIZER


def require_fits(tokenizer: Tokenizer, config: ModelConfig, folder: Path) -> None:
    """Raises UserError if the tokenizer has more tokens than the model in `folder`."""
    if tokenizer.n_vocab > config.n_vocab:
        raise UserError(
            f"tokenizer {tokenizer.name!r} has {tokenizer.n_vocab} tokens but the model in {str(folder)!r} only "
            f"{config.n_vocab}; name the one that it was trained with"
        )


def weights_fingerprint(params: Params, config: ModelConfig) -> str:
    """SHA-256 over names, shapes and checksums of the parameters, without the vocabulary's padding.

    It depends on the weights alone: not on their sharding, and not on where they were read from. (A GPT-Neo model that
    went through Hugging Face's format keeps it if the format holds its weights exactly: without biases of queries, keys
    and values, and sqrt(d_head) a power of two.) Every process that holds a part of the parameters must call it.
    """
    own = dataclasses.replace(params, token_embedding=params.token_embedding[: config.n_vocab])
    return record_digest(_fingerprint_entries(named_leaves(own)))


def _fingerprint_entries(leaves: dict[str, jax.Array]) -> dict[str, Any]:
    sums = array_checksums(leaves)
    return {name: {**describe(leaf), "checksum": sums[name]} for name, leaf in leaves.items()}
