"""Repeated measurements and their statistics."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MATMUL_SIZE = 2048
_MATMUL_REPEATS = 10


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, quartiles and range of some measurements. No outlier is dropped."""

    median: float
    quartile_1: float
    quartile_3: float
    smallest: float
    largest: float
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Computes the statistics of at least one value."""
        low, first, middle, third, high = (float(q) for q in np.quantile(values, (0, 0.25, 0.5, 0.75, 1)))
        return Spread(middle, first, third, low, high, len(values))


def seconds(run: Callable[[], Any]) -> float:
    """Seconds until the result of `run` is computed."""
    started = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - started


def repetitions(asked: int | None, one: float, most: int, budget: float, least: int = 3) -> int:
    """Number of repetitions: `asked`, else `most`, limited to what fits into `budget` seconds at `one` second each, but
    at least `least`."""
    if asked is not None:
        return asked
    return max(least, min(most, math.floor(budget / max(one, 1e-9))))


def matmul_rate(device: jax.Device, dtype: str) -> float:
    """Floating-point operations per second of the fastest of some matmuls of 2048 × 2048 × 2048 on one device.

    Args:
        dtype: of the operands; they are accumulated in fp32. float32 is full fp32.
    """
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else None

    @jax.jit
    def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, precision=precision, preferred_element_type=jnp.float32)

    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.device_put(jax.random.normal(key, (MATMUL_SIZE, MATMUL_SIZE)).astype(dtype), device) for key in keys)
    jax.block_until_ready(multiply(a, b))
    fastest = min(seconds(lambda: multiply(a, b)) for _ in range(_MATMUL_REPEATS))
    return 2.0 * MATMUL_SIZE**3 / fastest
