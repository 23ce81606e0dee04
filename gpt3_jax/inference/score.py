"""Log-likelihoods over a mesh: weights lie as in training, a batch's rows are split over replica and data."""

from __future__ import annotations

import jax
from jax.sharding import Mesh, PartitionSpec

from gpt3_jax.config import Config
from gpt3_jax.model.params import Params, param_table
from gpt3_jax.model.scoring import Past, Tree, read_prefix, scores
from gpt3_jax.parallel.compiler_options import Options, compiler_options
from gpt3_jax.parallel.rules import batch_partition
from gpt3_jax.parallel.zero import Zero


def make_score(config: Config, mesh: Mesh) -> jax.stages.Wrapped:
    """The jitted ``(params, tree, past or None) -> (log-likelihoods [B, N], whether the likeliest [B, N])`` of
    `model.scoring.scores`.

    Parameters are the fp32 shards of the stage, `config.parallel.stage`, as training keeps them; they are gathered
    where the stage gathers them. Rows of the tree are sharded by `batch_partition`: B is a multiple of
    `batch_shards`. Each device's rows × S are a multiple of the tensor axis.
    """
    zero = _zero(config, mesh)
    by_row = batch_partition(mesh)
    prefix = PartitionSpec(None, None, zero.local.tensor)

    def score(params: Params, tree: Tree, past: Past | None) -> tuple[jax.Array, jax.Array]:
        weights = zero.weights(*zero.prepare(params))
        return scores(weights, tree, past, config.model, zero.local)

    def sharded(params: Params, tree: Tree, past: Past | None) -> tuple[jax.Array, jax.Array]:
        specs = (zero.specs, by_row, None if past is None else prefix)
        return jax.shard_map(score, mesh=mesh, in_specs=specs, out_specs=by_row)(params, tree, past)

    return jax.jit(sharded, compiler_options=_options(config, mesh))


def make_read_prefix(config: Config, mesh: Mesh) -> jax.stages.Wrapped:
    """The jitted ``(params, tokens [P]) -> Past``, its heads sharded over tensor, the same on every row's device."""
    zero = _zero(config, mesh)

    def read(params: Params, tokens_P: jax.Array) -> Past:
        return read_prefix(zero.weights(*zero.prepare(params)), tokens_P, config.model, zero.local)

    out = PartitionSpec(None, None, zero.local.tensor)
    sharded = jax.shard_map(read, mesh=mesh, in_specs=(zero.specs, PartitionSpec()), out_specs=out, check_vma=False)
    return jax.jit(sharded, compiler_options=_options(config, mesh))


def _zero(config: Config, mesh: Mesh) -> Zero:
    return Zero(param_table(config.model), mesh, config.parallel, config.model.dtype, config.memory.mlp_parts)


def _options(config: Config, mesh: Mesh) -> Options:
    return compiler_options(mesh) if config.parallel.overlap else {}
