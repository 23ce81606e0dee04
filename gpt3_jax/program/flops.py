"""The matmul work of a program, counted from its jaxpr, recomputation included.

Inside the step's `jax.shard_map` shapes are one device's own, so the count is per device. Elementwise work is left
out: it is bound by memory, not by arithmetic.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.extend import core, source_info_util

from gpt3_jax.errors import RunError
from gpt3_jax.program.attention_kernels import CUDNN_BACKWARD, CUDNN_FORWARD, visible_scores

_CUDNN = {
    "dot_product_attention_fwd_wrapper": CUDNN_FORWARD,
    "dot_product_attention_bwd_wrapper": CUDNN_BACKWARD,
}
"""JAX's primitives of cuDNN's fused attention, and the matmuls over scores in each."""


@dataclasses.dataclass(frozen=True)
class Matmul:
    """One matmul of a program, at one place of the code."""

    flops: float
    """In all its calls."""
    operands: tuple[str, ...]
    """Their dtypes."""
    kernel: str
    """The kernel that it is part of, by its name; empty for a matmul of the program itself."""
    source: str
    """Where it stands: file, line, function; empty for cuDNN's."""


def matmul_flops(jaxpr: Any, shares: Sequence[float] = ()) -> float:
    """Floating-point operations of all matmuls in one call of the program, per device: 2 for each multiply-add.

    Args and errors as of `matmuls`.
    """
    return sum(matmul.flops for matmul in matmuls(jaxpr, shares))


def matmuls(jaxpr: Any, shares: Sequence[float] = ()) -> list[Matmul]:
    """The matmuls of one call of the program, per device, in program order.

    Args:
        jaxpr: of the program; open or closed.
        shares: of a condition in the scope ``attention`` with as many branches, how often each is taken (the kinds of
            attention, where one block's code chooses). Of other conditions, the branch with most
            FLOPs counts.

    A Pallas kernel counts with its whole grid: what it skips of a causal mask's blocks is counted, too.

    Raises:
        RunError: a matmul in a loop without a fixed trip count.
    """
    return list(_walk(getattr(jaxpr, "jaxpr", jaxpr), shares))


def _walk(jaxpr: Any, shares: Sequence[float]) -> Iterator[Matmul]:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            yield _matmul(eqn, _dot(eqn))
        elif name in _CUDNN:
            yield Matmul(_cudnn(eqn), _dtypes(eqn), name, "")
        elif name == "scan":
            yield from _times(eqn.params["length"], matmuls(eqn.params["jaxpr"], shares))
        elif name == "cond":
            branches = [matmuls(branch, shares) for branch in eqn.params["branches"]]
            if len(branches) == len(shares) and "attention" in _scopes(eqn):
                for share, branch in zip(shares, branches, strict=True):
                    yield from _times(share, branch)
            else:
                yield from max(branches, key=lambda branch: sum(matmul.flops for matmul in branch))
        elif name == "pallas_call":
            # The conditions in there are the kernel's own.
            inside = _times(math.prod(eqn.params["grid_mapping"].grid), matmuls(eqn.params["jaxpr"]))
            yield from (dataclasses.replace(matmul, kernel=eqn.params["name"]) for matmul in inside)
        elif name == "while":
            if any(matmuls(inner, shares) for inner in core.jaxprs_in_params(eqn.params)):
                where = source_info_util.summarize(eqn.source_info)
                raise RunError(f"the loop at {where} has matmuls and no fixed trip count: they cannot be counted")
        else:
            for inner in core.jaxprs_in_params(eqn.params):
                yield from matmuls(inner, shares)


def _matmul(eqn: Any, flops: float) -> Matmul:
    return Matmul(flops, _dtypes(eqn), "", source_info_util.summarize(eqn.source_info))


def _dtypes(eqn: Any) -> tuple[str, ...]:
    return tuple(np.dtype(atom.aval.dtype).name for atom in eqn.invars[:2])


def _times(count: float, inside: Iterable[Matmul]) -> Iterator[Matmul]:
    return (dataclasses.replace(matmul, flops=count * matmul.flops) for matmul in inside)


def _scopes(eqn: Any) -> set[str]:
    """The named scopes that an equation stands in, derivatives' included: ``transpose(jvp(attention))``."""
    return set(re.split(r"[/()]+", str(eqn.source_info.name_stack)))


def _dot(eqn: Any) -> int:
    (contracted, _), (batch, _) = eqn.params["dimension_numbers"]
    left, right = (v.aval.shape for v in eqn.invars[:2])
    return (
        2
        * math.prod(left)
        * math.prod(right)
        // math.prod(left[d] for d in contracted)
        // math.prod(left[d] for d in batch)
    )


def _cudnn(eqn: Any) -> int:
    """Scores that the kernel's mask lets it see: a causal band of `sliding_window_length`, or all before."""
    b, t, heads, width = eqn.invars[0].aval.shape
    visible = visible_scores(t, eqn.params.get("sliding_window_length"))
    return _CUDNN[eqn.primitive.name] * 2 * b * heads * width * visible
