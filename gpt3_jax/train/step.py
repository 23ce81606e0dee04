"""The training step: one `jax.shard_map`, manual over every mesh axis, so that every collective is explicit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from gpt3_jax.config import Config
from gpt3_jax.model import cpu
from gpt3_jax.model.params import Params, decay_mask, param_table
from gpt3_jax.model.transformer import gathers_ahead, loss_sum
from gpt3_jax.parallel.collectives import Local
from gpt3_jax.parallel.compiler_options import compiler_options, overlaps_scatters
from gpt3_jax.parallel.mesh import BATCH_AXES, batch_shards, mesh_platform, shape_of
from gpt3_jax.parallel.rules import batch_partition, shardings
from gpt3_jax.parallel.zero import Kind, Zero
from gpt3_jax.spec import T
from gpt3_jax.train import optimizer
from gpt3_jax.train.state import TrainState, state_partitions


@flax.struct.dataclass
class Metrics(Generic[T]):
    """Metrics of one step: fp32 scalars, replicated on every device; or their partitions."""

    loss: T
    """Mean over the batch's tokens, in nats."""
    grad_norm: T
    """Global norm before clipping."""
    learning_rate: T
    finite: T
    """1 if loss and gradient norm were finite and the update was made, else 0."""


def periods(config: Config, devices: int, platform: str, begun: int = 0) -> int:
    """`memory.unroll`; for 0, the number of periods that it stands for on so many devices of a platform.

    Args:
        begun: the number with which the run began, if it is resumed. Where the number is chosen, it stays.
    """
    if config.memory.unroll:
        return config.memory.unroll
    if devices > 1 or platform != "cpu" or config.memory.remat == "offload":
        return 1
    return begun or cpu.unroll(config.model, config.train.tokens)


def unroll(config: Config, mesh: Mesh, begun: int = 0) -> int:
    """`periods` on this mesh."""
    return periods(config, mesh.size, mesh_platform(mesh), begun)


def make_step(config: Config, mesh: Mesh, microbatches: int = 1) -> jax.stages.Wrapped:
    """The jitted step ``(state, rows) -> (state, metrics)``. The state is donated.

    The table in `parallel.zero.stages` lists the collectives that move weights and gradients, when they run and in
    which dtype. `parallel.collectives` has those of activations between tensor shards.

    Args:
        microbatches: number of parts that a device's rows are split into, computed one after the other.

    ``rows`` is int32 [global batch, n_ctx + 1], sharded by `batch_partition`. Each token's loss is divided by the
    tokens of the whole batch, so that the sum over microbatches and devices is the batch mean.
    """
    zero = _zero(config, mesh)
    batch_axes = tuple(axis for axis in BATCH_AXES if axis in zero.local.axes)
    mask = decay_mask(config.model, config.optimizer.weight_decay_on)
    schedule = optimizer.learning_rate(config.optimizer)

    def step(state: TrainState, rows: jax.Array) -> tuple[TrainState, Metrics]:
        n_sequences = rows.shape[0] * batch_shards(mesh)
        n_tokens = float(n_sequences * config.model.n_ctx)  # a float, because it may exceed 32 bits
        # Stages 1 and 2 all-gather the weights here.
        targets, sources = zero.prepare(state.params)

        def mean_loss(targets: Params, rows: jax.Array) -> jax.Array:
            total = loss_sum(
                # Stage 3 all-gathers in each block; stages 2 and 3 reduce-scatter in its derivative.
                zero.weights(targets, sources),
                rows,
                config.model,
                zero.local,
                config.memory.remat,
                config.memory.loss_chunk,
                unroll(config, mesh),
            )
            return total / n_tokens

        loss, gradients = _over_microbatches(jax.value_and_grad(mean_loss), targets, rows, microbatches, zero.local)
        # Stage 1 reduce-scatters here. Every stage all-reduces here what is not summed yet.
        gradients = zero.reduce(gradients)
        loss = lax.psum(loss, batch_axes)
        norm = jnp.sqrt(zero.square_norm(gradients))
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        sequences = state.sequences + jnp.uint32(n_sequences)
        rate = schedule(sequences.astype(jnp.float32) * config.model.n_ctx)
        with jax.named_scope("clip"):
            factor = optimizer.clip_factor(config.optimizer, norm)
            gradients = jax.tree.map(lambda g: g * factor, gradients)
        with jax.named_scope("optimizer"):
            # The state never takes an update from a loss that is not finite, whatever the loop decides.
            given = config.optimizer, mask, gradients, state.opt_state, state.params, rate
            if cpu.updates_in_place(zero.local.platform):
                params, opt_state = optimizer.update_in_place(*given, finite)
            else:
                params, opt_state = jax.tree.map(
                    lambda new, old: jnp.where(finite, new, old),
                    optimizer.update(*given),
                    (state.params, state.opt_state),
                )
        skipped = state.skipped + jnp.uint32(~finite)
        metrics = Metrics(loss, norm, jnp.asarray(rate, jnp.float32), finite.astype(jnp.float32))
        return TrainState(params, opt_state, state.step + jnp.uint32(1), sequences, skipped), metrics

    partitions = state_partitions(config, mesh)
    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=(partitions, batch_partition(mesh)), out_specs=(partitions, PartitionSpec())
    )
    everywhere = PartitionSpec()
    out_shardings = shardings((partitions, Metrics(everywhere, everywhere, everywhere, everywhere)), mesh)
    options = compiler_options(mesh) if config.parallel.overlap else {}
    return jax.jit(sharded, donate_argnums=0, out_shardings=out_shardings, compiler_options=options)


def _zero(config: Config, mesh: Mesh) -> Zero:
    model, platform, scatters = config.model, mesh_platform(mesh), overlaps_scatters(mesh.devices.flat[0])
    blocks: Kind | None = None
    if gathers_ahead(config, shape_of(mesh), platform, scatters):
        blocks = "loop"
    elif cpu.casts_layers(config, platform, mesh.size, unroll(config, mesh)):
        blocks = "layers"
    return Zero(param_table(model), mesh, config.parallel, model.dtype, config.memory.mlp_parts, blocks)


def _over_microbatches(
    loss_and_gradients: Callable[[Params, jax.Array], tuple[jax.Array, Params]],
    targets: Params,
    rows: jax.Array,
    microbatches: int,
    local: Local,
) -> tuple[jax.Array, Params]:
    """Splits a device's rows into microbatches and sums their losses and gradients. Several are summed in fp32; the
    gradients of a single microbatch keep the dtype of the backward pass."""
    if microbatches == 1:
        return loss_and_gradients(targets, rows)

    def add(total: tuple[jax.Array, Params], rows: jax.Array) -> tuple[tuple[jax.Array, Params], None]:
        part = loss_and_gradients(targets, rows)
        return jax.tree.map(lambda sum_, part: sum_ + part.astype(jnp.float32), total, part), None

    # Mesh axes over which the accumulators vary: the loss is equal within a tensor group, gradients differ per device.
    zeros = (
        local.vary_batch(jnp.zeros((), jnp.float32)),
        local.vary(targets.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32))),
    )
    total, _ = lax.scan(add, zeros, rows.reshape(microbatches, -1, rows.shape[1]))
    return total


def make_eval_step(config: Config, mesh: Mesh) -> jax.stages.Wrapped:
    """The jitted ``(params, rows) -> sum of -log p`` over all targets of a batch, in nats (fp32 scalar).

    Negative targets are ignored, so that a last batch can be padded.
    """
    zero = _zero(config, mesh)
    batch_axes = tuple(axis for axis in BATCH_AXES if axis in zero.local.axes)

    def evaluate(params: Params, rows: jax.Array) -> jax.Array:
        weights = zero.weights(*zero.prepare(params))
        # Without a backward pass nothing is kept, so there is no remat, whatever training uses.
        total = loss_sum(
            weights, rows, config.model, zero.local, "none", config.memory.loss_chunk, unroll(config, mesh)
        )
        return lax.psum(total, batch_axes)

    specs = state_partitions(config, mesh).params
    return jax.jit(
        jax.shard_map(evaluate, mesh=mesh, in_specs=(specs, batch_partition(mesh)), out_specs=PartitionSpec())
    )
