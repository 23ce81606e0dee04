"""What a parameter is: `ParamSpec`, and the closed list of names that its dimensions may bear."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

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
    """The name of each dimension; `layers` only in front."""
    zero_axis: LogicalAxis
    """The dimension that ZeRO shards over the data axis: in front where it can be, so that a gather needs no
    transpose behind it."""
    init: float
    """Standard deviation of a normal distribution; or, with `constant`, the value itself."""
    constant: bool = False
    kind: ParamKind = "vector"
    """What weight decay chooses by (`optimizer.weight_decay_on`). Declared, not guessed from ndim: stacked biases have
    two dimensions."""

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
        """Dimension that ZeRO shards, counted in one block's tensor (without `layers`)."""
        return self.axes.index(self.zero_axis) - self.stacked

    @property
    def size(self) -> int:
        return math.prod(self.shape)
