"""What a device reaches at best, in a large bf16 matmul and in a copy: what a training step is held against."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

_ROUNDS = 4
"""The first one warms up, the fastest of the others counts."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured."""

    matmul: int
    """Rows and columns of the square matrices."""
    copied: int
    """bf16 elements of the array that is read and written."""
    calls: int
    """Dispatched one behind the other, in a round."""


SMALL = Size(matmul=2048, copied=2**24, calls=3)
"""A CPU's."""
LARGE = Size(matmul=8192, copied=2**30, calls=30)
"""An accelerator's: half a second a round."""


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What was measured."""

    matmul_flops: float
    """Floating-point operations per second of a bf16 matmul with a bf16 result."""
    matmul_size: int
    copy_bytes: float
    """Bytes per second, read and written both counted."""


def measure(device: jax.Device, size: Size | None = None) -> Ceilings:
    """Measures one device, with nothing else running on it. Default: `SMALL` on a CPU, `LARGE` elsewhere."""
    size = size or (SMALL if device.platform == "cpu" else LARGE)
    keys = jax.random.split(jax.random.key(0))
    shape = (size.matmul, size.matmul)
    a, b = (jax.device_put(jax.random.normal(key, shape, jnp.bfloat16), device) for key in keys)
    x = jax.device_put(jnp.ones(size.copied, jnp.bfloat16), device)
    multiply, add_one = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    return Ceilings(
        matmul_flops=2.0 * size.matmul**3 / _seconds(lambda: multiply(a, b), size.calls),
        matmul_size=size.matmul,
        copy_bytes=2.0 * x.nbytes / _seconds(lambda: add_one(x), size.calls),
    )


def read_bytes(device: jax.Device, size: Size | None = None) -> float:
    """Bytes per second at which the device reads memory: a sum over an array that no cache holds. What generation is
    held against, which reads the weights for each token."""
    size = size or (SMALL if device.platform == "cpu" else LARGE)
    x = jax.device_put(jnp.ones(2 * size.copied, jnp.float32), device)
    total = jax.jit(jnp.sum)
    return x.nbytes / _seconds(lambda: total(x), size.calls)


def _seconds(run: Callable[[], jax.Array], calls: int) -> float:
    """Of one call, the next dispatched before the last has ended."""
    rounds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        for _ in range(calls):
            result = run()
        jax.block_until_ready(result)
        rounds.append((time.perf_counter() - started) / calls)
    return min(rounds[1:])
