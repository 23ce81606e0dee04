"""ZeRO's formulas: model state on a device (sections 3.1, 5) and traffic of a step (section 7).

Ψ is the number of parameters, N the devices of the ZeRO group, K the bytes of optimizer state per parameter. The
formulas are for a model whose every tensor divides by N. A compiled program is compared with them; no plan is made from
them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, TypeAlias

import jax

from gpt3_jax.config import ModelConfig
from gpt3_jax.model.params import param_table
from gpt3_jax.parallel.mesh import TENSOR
from gpt3_jax.parallel.rules import TENSOR_RULES

Stage: TypeAlias = Literal[0, 1, 2, 3]
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)

K = 12
"""Adam in mixed precision: fp32 parameters, momentum and variance, 4 bytes each (ZeRO section 3.1)."""


@functools.cache  # a search asks for each of its candidates
def psi_of_shard(model: ModelConfig, tensor: int) -> int:
    """Ψ: parameters that one of `tensor` shards holds, vocabulary padding included. That is its share of what tensor
    parallelism splits, and all of the rest."""
    split = {axis for axis, over in TENSOR_RULES.items() if over == TENSOR}
    return sum(
        spec.size // tensor if split & set(spec.axes) else spec.size for spec in jax.tree.leaves(param_table(model))
    )


@dataclasses.dataclass(frozen=True)
class ModelState:
    """Bytes of model state on one device (ZeRO section 3.1)."""

    parameters: float
    """16-bit parameters."""
    gradients: float
    """Gradients, 16-bit in the paper."""
    optimizer: float
    """fp32 parameters, momentum and variance."""

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer


def model_state(parameters: float, devices: int, stage: Stage, k: int = K, gradient_bytes: int = 2) -> ModelState:
    """Bytes of model state per device: (4 + K) Ψ, and with each stage one more term over N (ZeRO section 5).

    Args:
        parameters: Ψ; with tensor parallelism, those of one tensor shard.
        devices: N, the devices over which the stage shards.
        stage: 0 replicates, 1 shards optimizer state (P_os), 2 gradients too (P_os+g), 3 parameters too (P_os+g+p).
        k: bytes of optimizer state per parameter.
        gradient_bytes: of one element of the gradient: 2 in the paper; 4 for the fp32 shards that stages 2 and 3 hold
            with `parallel.reduce_dtype: float32`.
    """
    return ModelState(
        parameters=2 * parameters / (devices if stage >= 3 else 1),
        gradients=gradient_bytes * parameters / (devices if stage >= 2 else 1),
        optimizer=k * parameters / (devices if stage >= 1 else 1),
    )


def traffic(stage: Stage) -> int:
    """Elements that a device sends in a step, in units of Ψ, for a large N (ZeRO section 7).

    2 at stages 0 to 2 (reduce-scatter and all-gather, of gradients or of the new parameters); 3 at stage 3, which
    gathers the parameters for the forward and again for the backward pass and reduce-scatters the gradients.
    """
    return 3 if stage == 3 else 2
