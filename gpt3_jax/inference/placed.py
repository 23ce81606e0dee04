"""Where generation's weights and caches lie, on one device or over a mesh, and how weights are moved there and back.

Weights and caches are split over tensor: heads, MLP and vocabulary; caches also over replica and data, by rows.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt3_jax.config import ModelConfig
from gpt3_jax.errors import UserError
from gpt3_jax.model.decode import Cache, DecodeWeights, decode_weights, init_cache
from gpt3_jax.model.params import Params, abstract, param_table
from gpt3_jax.model.stored import Form, Matrix, Stored, contracted, outputs_first, restore, store
from gpt3_jax.parallel.mesh import BATCH_AXES, TENSOR, active_axes, mesh_platform, platform_of
from gpt3_jax.parallel.rules import batch_partition, partitions, shardings
from gpt3_jax.spec import ParamSpec


def weight_partitions(config: ModelConfig, mesh: Mesh, form: Form = "compute") -> DecodeWeights:
    """How each weight lies on the mesh: split over tensor, whole over the other axes.

    Raises:
        UserError: a dimension, or the heads, that tensor does not divide.
    """
    tensor = mesh.shape[TENSOR]
    if config.n_heads % tensor:
        raise UserError(
            f"model.n_heads {config.n_heads} is not divisible by parallel.tensor {tensor}; choose a tensor axis that "
            "divides the heads"
        )
    specs = param_table(config)
    table = partitions(specs, mesh, zero=False)

    def stored(where: PartitionSpec, spec: ParamSpec) -> Any:
        where = PartitionSpec(*where[1:]) if spec.stacked else where  # without the dimension of layers
        if not outputs_first(spec, form, jnp.dtype(config.dtype), mesh_platform(mesh)):
            return where
        dims = list(where)
        inputs = dims.pop(contracted(spec))
        tree: Any = Stored  # of partitions, not of arrays
        return tree(PartitionSpec(*dims, inputs), PartitionSpec(*dims) if form == "int8" else None)

    tree: Any = DecodeWeights
    return tree(  # type: ignore[no-any-return]
        stored(table.token_embedding, specs.token_embedding),
        table.position_embedding,
        (table.blocks.map(stored, specs.blocks),) * config.n_layers,
        table.ln_f_scale,
        table.ln_f_bias,
    )


def cache_partitions(config: ModelConfig, mesh: Mesh) -> Cache:
    """How the cache lies on the mesh: rows over replica and data, heads over tensor."""
    active = active_axes(mesh)
    everything = tuple(axis for axis in (*BATCH_AXES, TENSOR) if axis in active)
    layers: Any = (PartitionSpec(everything or None),) * config.n_layers
    lengths: Any = batch_partition(mesh)
    return Cache(layers, layers, lengths)


def abstract_weights(config: ModelConfig, mesh: Mesh, form: Form = "compute") -> DecodeWeights:
    """Shapes, dtypes and shardings of the weights, for compilation. Raises the errors of `weight_partitions`."""
    platform = mesh_platform(mesh)
    made = jax.eval_shape(lambda params: decode_weights(params, config, form, platform), abstract(config))
    where = weight_partitions(config, mesh, form)
    return _with_shardings(made, shardings(where, mesh))  # type: ignore[no-any-return]


def abstract_cache(config: ModelConfig, mesh: Mesh, rows: int, capacity: int) -> Cache:
    """Shapes, dtypes and shardings of a cache for so many rows, for compilation."""
    made = jax.eval_shape(lambda: init_cache(config, rows, mesh_platform(mesh), capacity))
    return _with_shardings(made, shardings(cache_partitions(config, mesh), mesh))  # type: ignore[no-any-return]


def _with_shardings(shapes: Any, where: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, where
    )


def place_weights(
    params: Params[Any], config: ModelConfig, mesh: Mesh | None, form: Form = "compute", *, consume: bool = False
) -> DecodeWeights:
    """Weights in the compute dtype, or with their matrices in int8, where the programs expect them.

    They are cast and moved one matrix at a time: a device holds its shards of the parameters, of the weights, and of
    one matrix more.

    Args:
        params: fp32, or in the compute dtype already, or quantised ahead (`stored.Stored`), wherever they lie: ZeRO's
            shards on this mesh, on one device, or numpy arrays in the host's memory (which may hold what no device
            does).
        mesh: None: the one device that holds `params`.
        consume: whether to delete the blocks' parameters, each as soon as its layers are cut out of it.

    Raises:
        UserError: as `weight_partitions`.
    """
    if mesh is None and not consume:
        return decode_weights(params, config, form)
    table, dtype = param_table(config), jnp.dtype(config.dtype)
    platform = platform_of(params) if mesh is None else mesh_platform(mesh)
    where = None if mesh is None else shardings(weight_partitions(config, mesh, form), mesh)
    kept = functools.partial(_stored, form=form, dtype=dtype, platform=platform)

    def whole(name: str) -> Any:
        made = kept(getattr(params, name), getattr(table, name))
        return jax.device_put(made, None if where is None else getattr(where, name))

    def layers(stack: Any, spec: ParamSpec, sharding: Any = None) -> tuple[Any, ...]:
        cut = tuple(
            jax.device_put(kept(jax.tree.map(lambda leaf, i=i: _layer(leaf, i), stack), spec), sharding)
            for i in range(config.n_layers)
        )
        if consume:
            for leaf in jax.tree.leaves(stack):
                if isinstance(leaf, jax.Array):
                    leaf.delete()
        return cut

    by_layer = params.blocks.map(layers, table.blocks, *([] if where is None else [where.blocks[0]]))
    return DecodeWeights(
        whole("token_embedding"),
        whole("position_embedding"),
        tuple(by_layer.map(lambda cut, i=i: cut[i]) for i in range(config.n_layers)),
        whole("ln_f_scale"),
        whole("ln_f_bias"),
    )


def order_for(weights: DecodeWeights, config: ModelConfig, platform: str, rows: int) -> DecodeWeights:
    """The weights, in the compute dtype and on one device, in the order in which so many rows at once read them fastest
    (`cpu.reads_outputs_first`). What changes is moved one matrix at a time, and its old form deleted."""
    dtype = jnp.dtype(config.dtype)

    def ordered(spec: ParamSpec, matrix: Matrix) -> Matrix:
        wanted = outputs_first(spec, "compute", dtype, platform, rows)
        if wanted == isinstance(matrix, Stored):
            return matrix
        made = jax.block_until_ready(_turned(matrix, spec=spec, dtype=dtype, platform=platform, rows=rows))
        for moved in jax.tree.leaves(matrix):
            moved.delete()
        return made

    table = param_table(config).blocks
    blocks = tuple(table.map(ordered, block) for block in weights.blocks)
    return weights.replace(blocks=blocks)  # type: ignore[attr-defined,no-any-return]


@functools.partial(jax.jit, static_argnames=("spec", "dtype", "platform", "rows"))
def _turned(matrix: Matrix, spec: ParamSpec, dtype: jnp.dtype, platform: str, rows: int) -> Matrix:
    return store(restore(matrix, spec), spec, "compute", dtype, platform, rows)


def take_params(weights: DecodeWeights, config: ModelConfig, where: Params[NamedSharding]) -> Params:
    """The parameters, in the compute dtype, that `place_weights` made these weights of, placed so: its inverse. The
    blocks' weights are deleted, each as soon as its layers are stacked; a device holds one parameter more meanwhile.

    Not for weights in int8.
    """

    def stacked(spec: ParamSpec, sharding: NamedSharding, *layers: Any) -> jax.Array:
        made = jax.block_until_ready(_stack(layers, spec, sharding))
        for moved in jax.tree.leaves(layers):
            moved.delete()
        return made

    def whole(name: str) -> jax.Array:
        return jax.device_put(getattr(weights, name), getattr(where, name))

    return Params(
        token_embedding=whole("token_embedding"),
        position_embedding=whole("position_embedding"),
        blocks=param_table(config).blocks.map(stacked, where.blocks, *weights.blocks),
        ln_f_scale=whole("ln_f_scale"),
        ln_f_bias=whole("ln_f_bias"),
    )


@functools.partial(jax.jit, static_argnames=("spec", "sharding"))
def _stack(layers: tuple[Any, ...], spec: ParamSpec, sharding: NamedSharding) -> jax.Array:
    stack = jnp.stack([restore(layer, spec) for layer in layers])
    return lax.with_sharding_constraint(stack, sharding)


def _layer(stack: Any, i: int) -> Any:
    return stack[i] if isinstance(stack, np.ndarray) else _cut(stack, i)


@jax.jit
def _cut(stack: jax.Array, i: int) -> jax.Array:
    return lax.dynamic_index_in_dim(stack, i, keepdims=False)


_stored = jax.jit(store, static_argnames=("spec", "form", "dtype", "platform"))
