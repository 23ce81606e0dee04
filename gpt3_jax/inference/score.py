"""Log-likelihoods over a mesh: weights lie as in training, a batch's rows are split over replica and data."""

from __future__ import annotations

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt3_jax.config import MemoryConfig, ModelConfig, ParallelConfig
from gpt3_jax.model.params import Params, param_table
from gpt3_jax.model.scoring import Past, Tree, read_prefix, scores
from gpt3_jax.parallel.compiler_options import compiler_options
from gpt3_jax.parallel.rules import batch_partition
from gpt3_jax.parallel.zero import Zero


def make_score(model: ModelConfig, mesh: Mesh, parallel: ParallelConfig, memory: MemoryConfig) -> jax.stages.Wrapped:
    """The jitted ``(params, tree, past or None) -> (log-likelihoods [B, N], whether the likeliest [B, N])`` of
    `model.scoring.scores`.

    Parameters are the fp32 shards of the stage, `parallel.stage`, as training keeps them; they are gathered
    where the stage gathers them. Rows of the tree are sharded by `batch_partition`: B is a multiple of
    `batch_shards`. Each device's rows × S are a multiple of the tensor axis.
    """
    zero = Zero(param_table(model), mesh, parallel, model.dtype, memory.mlp_parts)
    by_row = batch_partition(mesh)
    prefix = PartitionSpec(None, None, zero.local.tensor)

    def score(params: Params, tree: Tree, past: Past | None) -> tuple[jax.Array, jax.Array]:
        weights = zero.weights(*zero.prepare(params))
        return scores(weights, tree, past, model, zero.local)

    def sharded(params: Params, tree: Tree, past: Past | None) -> tuple[jax.Array, jax.Array]:
        specs = (zero.specs, by_row, None if past is None else prefix)
        return jax.shard_map(score, mesh=mesh, in_specs=specs, out_specs=by_row)(params, tree, past)

    # Whole on every device, so that each process of a run reads all of them.
    options = compiler_options(mesh) if parallel.overlap else {}
    return jax.jit(sharded, out_shardings=NamedSharding(mesh, PartitionSpec()), compiler_options=options)


def make_read_prefix(
    model: ModelConfig, mesh: Mesh, parallel: ParallelConfig, memory: MemoryConfig
) -> jax.stages.Wrapped:
    """The jitted ``(params, tokens [P]) -> Past``, its heads sharded over tensor, the same on every row's device."""
    zero = Zero(param_table(model), mesh, parallel, model.dtype, memory.mlp_parts)

    def read(params: Params, tokens_P: jax.Array) -> Past:
        return read_prefix(zero.weights(*zero.prepare(params)), tokens_P, model, zero.local)

    out = PartitionSpec(None, None, zero.local.tensor)
    sharded = jax.shard_map(read, mesh=mesh, in_specs=(zero.specs, PartitionSpec()), out_specs=out, check_vma=False)
    return jax.jit(sharded, compiler_options=compiler_options(mesh) if parallel.overlap else {})
