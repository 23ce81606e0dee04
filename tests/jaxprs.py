"""What a jaxpr computes, loops multiplied out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


def equations(jaxpr: Any) -> Iterator[tuple[Any, int]]:
    """Every equation with how often it runs: those inside scans as often as the scan is long."""
    for equation in jaxpr.eqns:
        yield equation, 1
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from ((found, times * count) for found, count in equations(inner))


def stacked(scan: Any) -> list[Any]:
    """The results of a scan that it stacks over its steps: all but the carry."""
    body = scan.params["jaxpr"]
    inner = getattr(body, "jaxpr", body).outvars
    return [out for out, each in zip(scan.outvars, inner, strict=True) if out.aval.shape != each.aval.shape]


def dot_flops(function: Any, *args: Any) -> int:
    """Multiplications and additions of all matmuls."""
    return flops_of(jax.make_jaxpr(function)(*args).jaxpr)


def flops_of(jaxpr: Any) -> int:
    """As `dot_flops`, of what is traced."""
    total = 0
    for equation, times in equations(jaxpr):
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            depth = np.prod([equation.invars[0].aval.shape[i] for i in contracted])
            total += 2 * times * int(depth * equation.outvars[0].aval.size)
    return total
