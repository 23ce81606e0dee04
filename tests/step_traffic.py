"""What a cell's step sends, from its jaxpr, and the sizes of the parameters that it sends."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import prod

import jax
import jax.numpy as jnp
from step_cells import CONTEXT, SEQUENCES, Cell, config, mesh_of

from gpt3_jax.model.params import names, param_table
from gpt3_jax.program.traffic import Collective, count
from gpt3_jax.train.state import abstract_state
from gpt3_jax.train.step import make_step

KERNELS = ("qkv_kernel", "attn_out_kernel", "mlp_up_kernel", "mlp_down_kernel")
TENSOR_SHARDED = ("token_embedding", *KERNELS[:1], "qkv_bias", *KERNELS[1:3], "mlp_up_bias", KERNELS[3])


def of_step(cell: Cell) -> list[Collective]:
    settings = config(cell)
    mesh = mesh_of(settings)
    rows = jax.ShapeDtypeStruct((SEQUENCES, CONTEXT + 1), jnp.int32)
    return count(make_step(settings, mesh, cell.microbatches), abstract_state(settings, mesh), rows)


def parameters(cell: Cell) -> dict[str, tuple[int, int]]:
    """For each parameter, how many tensors it is (one for each block) and the elements of one on a tensor shard."""
    table = param_table(config(cell).model)
    result = {}
    for name, spec in zip(names(table), jax.tree.leaves(table), strict=True):
        name = name.removeprefix("blocks.")
        shape = spec.shape[1:] if spec.stacked else spec.shape
        shards = cell.mesh[2] if name in TENSOR_SHARDED else 1
        result[name] = (spec.shape[0] if spec.stacked else 1, prod(shape) // shards)
    return result


def tally(collectives: list[Collective], kind: str, axis: str) -> Counter[int]:
    """Calls by size of tensor, of one kind over exactly one axis."""
    found: Counter[int] = Counter()
    for c in collectives:
        if c.kind == kind and c.axes == (axis,):
            found[c.elements] += c.calls
    return found


def sent(collectives: list[Collective], *kinds: str, axis: str) -> Fraction:
    return sum((c.elements_sent for c in collectives if c.kind in kinds and c.axes == (axis,)), Fraction(0))
