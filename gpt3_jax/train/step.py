"""The training step: one `jax.shard_map`, manual over every mesh axis, so that each collective stands in the code."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from gpt3_jax.config import Config
from gpt3_jax.model.params import decay_mask, param_table
from gpt3_jax.model.transformer import loss_sum
from gpt3_jax.parallel.compiler_options import compiler_options
from gpt3_jax.parallel.mesh import BATCH_AXES, batch_shards
from gpt3_jax.parallel.rules import batch_partition, shardings
from gpt3_jax.parallel.zero import Zero
from gpt3_jax.train import optimizer
from gpt3_jax.train.state import TrainState, state_partitions


@flax.struct.dataclass
class Metrics:
    """What a step says of itself: fp32 scalars, the same on every device."""

    loss: jax.Array
    """Mean over the batch's tokens, in nats."""
    grad_norm: jax.Array
    """Global norm before clipping."""
    learning_rate: jax.Array
    finite: jax.Array
    """1 if loss and gradient norm were finite and the update was made, else 0."""


def make_step(config: Config, mesh: Mesh, microbatches: int = 1) -> Any:
    """The jitted step ``(state, rows) -> (state, metrics)``; the state is donated.

    Args:
        microbatches: parts that a device's rows are taken in; gradients are summed over them.

    ``rows`` is int32 [global batch, n_ctx + 1], laid out by `batch_partition`. Each token's
    loss is divided by the tokens of the whole batch, so that sums over microbatches and devices are its mean.
    """
    zero = _zero(config, mesh)
    batch_axes = tuple(axis for axis in BATCH_AXES if axis in zero.local.axes)
    mask = decay_mask(config.model, config.optimizer.weight_decay_on)
    schedule = optimizer.learning_rate(config.optimizer)

    def step(state: TrainState, rows: jax.Array) -> tuple[TrainState, Metrics]:
        n_sequences = rows.shape[0] * batch_shards(mesh)
        n_tokens = float(n_sequences * config.model.n_ctx)  # which may be more than 32 bits hold
        active, passive = zero.prepare(state.params)

        def loss_and_gradients(rows: jax.Array) -> tuple[jax.Array, Any]:
            def loss(active: Any) -> jax.Array:
                total = loss_sum(
                    zero.weights(active, passive),
                    rows,
                    config.model,
                    zero.local,
                    config.memory.remat,
                    config.memory.loss_chunk,
                    config.memory.unroll,
                )
                return total / n_tokens

            return jax.value_and_grad(loss)(active)

        # The type over the mesh of what is summed: the loss is one for each tensor group, a gradient each device's own.
        zeros = (
            zero.local.vary_batch(jnp.zeros((), jnp.float32)),
            zero.local.vary(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), active)),
        )
        loss, gradients = _accumulate(loss_and_gradients, rows, microbatches, zeros)
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
            params, opt_state = optimizer.update(config.optimizer, mask, gradients, state.opt_state, state.params, rate)
            # An update from a loss that is not finite never reaches the state, whatever the loop decides about it.
            params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
            )
        skipped = state.skipped + jnp.uint32(~finite)
        metrics = Metrics(loss, norm, jnp.asarray(rate, jnp.float32), finite.astype(jnp.float32))
        return TrainState(params, opt_state, state.step + jnp.uint32(1), sequences, skipped), metrics

    partitions = state_partitions(config, mesh)
    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=(partitions, batch_partition(mesh)), out_specs=(partitions, PartitionSpec())
    )
    metrics: Any = PartitionSpec()
    out_shardings = shardings((partitions, Metrics(metrics, metrics, metrics, metrics)), mesh)
    options = compiler_options(mesh) if config.parallel.overlap else {}
    return jax.jit(sharded, donate_argnums=0, out_shardings=out_shardings, compiler_options=options)


def _zero(config: Config, mesh: Mesh) -> Zero:
    return Zero(param_table(config.model), mesh, config.parallel, config.model.dtype, config.memory.mlp_parts)


def _accumulate(loss_and_gradients: Any, rows: jax.Array, microbatches: int, zeros: Any) -> tuple[jax.Array, Any]:
    """Sums losses and gradients over microbatches, in fp32, from `zeros`."""
    if microbatches == 1:
        result: tuple[jax.Array, Any] = loss_and_gradients(rows)
        return result

    def add(total: Any, rows: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(lambda sum_, part: sum_ + part.astype(jnp.float32), total, loss_and_gradients(rows)), None

    total, _ = lax.scan(add, zeros, rows.reshape(microbatches, -1, rows.shape[1]))
    return total


def make_eval_step(config: Config, mesh: Mesh) -> Any:
    """The jitted ``(params, rows) -> sum of -log p`` over all targets of a batch, in nats (fp32 scalar).

    A target whose row holds a negative token in its place is left out: so a last batch may be padded.
    """
    zero = _zero(config, mesh)
    batch_axes = tuple(axis for axis in BATCH_AXES if axis in zero.local.axes)

    def evaluate(params: Any, rows: jax.Array) -> jax.Array:
        active, passive = zero.prepare(params)
        weights = zero.weights(active, passive)
        # Nothing is kept for a backward pass here: no remat, whatever training does.
        total = loss_sum(
            weights, rows, config.model, zero.local, "none", config.memory.loss_chunk, config.memory.unroll
        )
        return lax.psum(total, batch_axes)

    specs = state_partitions(config, mesh).params
    return jax.jit(
        jax.shard_map(evaluate, mesh=mesh, in_specs=(specs, batch_partition(mesh)), out_specs=PartitionSpec())
    )
