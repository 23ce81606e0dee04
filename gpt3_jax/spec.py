"""Parameters: `ParamSpec`, the closed list of logical axes, and the tree that all parameters form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Generic, Literal, get_args

import flax.struct
import jax
from typing_extensions import TypeVar

LogicalAxis = Literal["layers", "vocab", "context", "model", "qkv", "heads", "mlp"]
"""layers: stacked blocks · vocab: padded vocabulary · context: positions · model: residual stream, d_model ·
qkv: query, key, value (3) · heads: attention width, heads × d_head · mlp: d_ff."""

ParamKind = Literal["matrix", "embedding", "vector"]
"""matrix: a weight matrix · embedding: a row for each token or position · vector: a bias or a LayerNorm's scale."""


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One row of the parameter table. Everything about a parameter derives from its row."""

    shape: tuple[int, ...]
    axes: tuple[LogicalAxis, ...]
    """The logical axis of each dimension. `layers` may only come first."""
    zero_axis: LogicalAxis
    """The dimension that ZeRO shards over the data axis. It comes first where possible, so that a gather needs no
    transpose after it."""
    init: float
    """Standard deviation of a normal distribution; or, with `constant`, the value itself."""
    constant: bool = False
    kind: ParamKind = "vector"
    """Selects the parameters that decay (`optimizer.weight_decay_on`). Declared, not derived from ndim, because stacked
    biases have two dimensions."""

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(f"shape {self.shape} and axes {self.axes} differ in length")
        unknown = set(self.axes) - set(get_args(LogicalAxis))
        if unknown or len(set(self.axes)) != len(self.axes):
            raise ValueError(f"axes {self.axes} are not distinct names out of {get_args(LogicalAxis)}")
        if "layers" in self.axes[1:] or self.zero_axis not in self.axes or self.zero_axis == "layers":
            raise ValueError(f"axes {self.axes} with zero_axis {self.zero_axis!r} make no parameter")

    @property
    def stacked(self) -> bool:
        """Whether the first dimension runs over the blocks."""
        return self.axes[0] == "layers"

    @property
    def zero_dim(self) -> int:
        """The dimension that ZeRO shards, counted in one block's tensor (without `layers`)."""
        return self.axes.index(self.zero_axis) - self.stacked

    @property
    def size(self) -> int:
        return math.prod(self.shape)


T = TypeVar("T", default=jax.Array)
"""Type of the leaves of a parameter tree. `Params` alone means `Params[jax.Array]`."""
U = TypeVar("U")


class _Tree(Generic[T]):
    """Base of trees with one structure: `Params` and its blocks. T is the type of a leaf: an array, a `ParamSpec`, a
    PartitionSpec, a weight, … A leaf may itself be a pytree."""

    def leaves(self) -> list[T]:
        """The leaves, in the order of the fields."""
        return jax.tree.leaves(self, is_leaf=_is_leaf)


@flax.struct.dataclass
class Block(_Tree[T]):
    """One transformer block, or all of them stacked along a first dimension L."""

    ln_1_scale: T
    ln_1_bias: T
    qkv_kernel: T
    qkv_bias: T
    attn_out_kernel: T
    attn_out_bias: T
    ln_2_scale: T
    ln_2_bias: T
    mlp_up_kernel: T
    mlp_up_bias: T
    mlp_down_kernel: T
    mlp_down_bias: T

    def map(self, f: Callable[..., U], *others: Block[Any]) -> Block[U]:
        """Applies `f` to each leaf here and the corresponding leaves of the others."""
        mapped: Block[U] = jax.tree.map(f, self, *others, is_leaf=_is_leaf)
        return mapped


@flax.struct.dataclass
class Params(_Tree[T]):
    """All parameters as arrays; or their specs, partitions, weights and the like, in trees of the same structure."""

    token_embedding: T
    position_embedding: T
    blocks: Block[T]
    ln_f_scale: T
    ln_f_bias: T

    def map(self, f: Callable[..., U], *others: Params[Any]) -> Params[U]:
        """Applies `f` to each leaf here and the corresponding leaves of the others."""
        mapped: Params[U] = jax.tree.map(f, self, *others, is_leaf=_is_leaf)
        return mapped


def _is_leaf(node: object) -> bool:
    return not isinstance(node, _Tree)
