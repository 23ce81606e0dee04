"""An all-gather and a reduce-scatter by pieces, so that matmuls run while pieces travel.

Each of N shards passes pieces to both of its neighbours, so that on a torus both directions of an axis are busy. A
gather sends every shard's piece N // 2 places up and (N - 1) // 2 places down. A scatter sends partial sums the same
ways, and each device that they pass adds its part. A device sends N - 1 pieces, as many bytes as in the collective that
the ring replaces. Every hop is a permute of its own, which compilers run beside compute.

Nothing here is differentiated: the derivatives are those of the matmuls that use it (`model.matmul`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from gpt3_jax.config import ParallelConfig


def chosen(parallel: ParallelConfig) -> bool:
    """Whether tensor shards gather and scatter the sequence in rings."""
    return parallel.tensor_overlap == "rings"


def hide(parallel: ParallelConfig) -> bool:
    """Whether rings are predicted to hide what they send. Those of two shards are not: there is one hop, and one matmul
    beside it (the table in README.md)."""
    return chosen(parallel) and parallel.tensor > 2


def pieces(x: jax.Array, axis: str, shards: int) -> Iterator[tuple[jax.Array, jax.Array]]:
    """The pieces `x` of all shards of the axis, as they arrive: each with the index of the shard that it comes from.
    The device's own piece comes first."""
    here = lax.axis_index(axis)
    up, down = _hops(shards)
    yield here, x
    from_below = from_above = x
    for hop in range(1, up + 1):
        from_below = _sent(from_below, axis, shards, 1)
        yield (here - hop) % shards, from_below
        if hop <= down:
            from_above = _sent(from_above, axis, shards, -1)
            yield (here + hop) % shards, from_above


def summed(part: Callable[[jax.Array], jax.Array], axis: str, shards: int, dtype: DTypeLike) -> jax.Array:
    """The device's piece of a sum over all shards of the axis.

    Args:
        part: this device's term of the piece of the shard with this index, in fp32. Called once for each shard.
        dtype: in which sums travel, and that of the result.
    """
    here = lax.axis_index(axis)
    up, down = _hops(shards)

    def passed(total: jax.Array, step: int) -> jax.Array:
        return _sent(total.astype(dtype), axis, shards, step).astype(jnp.float32)

    # The parts with the longest way first; the device's own piece last, while the last sums are under way.
    rising = part((here + up) % shards)
    falling = part((here - down) % shards) if down else None
    for hop in range(1, up):
        rising = passed(rising, 1) + part((here + up - hop) % shards)
        if falling is not None and hop < down:
            falling = passed(falling, -1) + part((here - down + hop) % shards)
    total = part(here) + passed(rising, 1)
    return (total if falling is None else total + passed(falling, -1)).astype(dtype)


def _hops(shards: int) -> tuple[int, int]:
    """How far a piece travels up the ring, and down."""
    return shards // 2, (shards - 1) // 2


def _sent(x: jax.Array, axis: str, shards: int, step: int) -> jax.Array:
    """Receives `x` from the shard `step` places below on the ring; from above, if `step` is negative."""
    return lax.ppermute(x, axis, [(i, (i + step) % shards) for i in range(shards)])
