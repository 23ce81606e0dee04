"""The arithmetic of the papers: ZeRO's memory and traffic (sections 3.1, 5, 7), GPT-3's compute (Table D.1).

Ψ is the number of parameters, N the devices of the ZeRO group, K the bytes of optimizer state per parameter. These are
the papers' figures, for a model whose every tensor divides by N: a compiled program is compared with them, and never
the other way round.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Literal, TypeAlias

from gpt3_jax.config import ModelConfig, TrainConfig
from gpt3_jax.model.params import count_params, train_flops_per_token

Stage: TypeAlias = Literal[0, 1, 2, 3]
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)

K = 12
"""Adam in mixed precision: fp32 parameters, momentum and variance, 4 bytes each (ZeRO section 3.1)."""
PF_DAY = 1e15 * 24 * 3600
"""Floating-point operations of a petaflop/s-day (GPT-3 Table D.1)."""

TABLE_1_MODELS = (7.5e9, 128e9, 1e12)
TABLE_1_DEVICES = (1, 4, 16, 64, 256, 1024)
TABLE_2_TENSOR = (1, 2, 4, 8, 16)
TABLE_2_DEVICES = 64
TABLE_2_BYTES = 32e9


@dataclasses.dataclass(frozen=True)
class ModelState:
    """Bytes of model state on one device (ZeRO section 3.1)."""

    parameters: float
    """16-bit parameters."""
    gradients: float
    """16-bit gradients."""
    optimizer: float
    """fp32 parameters, momentum and variance."""

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer


def model_state(parameters: float, devices: int, stage: Stage, k: int = K) -> ModelState:
    """Bytes of model state per device: (4 + K) Ψ, and with each stage one more term over N (ZeRO section 5).

    Args:
        parameters: Ψ; with tensor parallelism, those of one tensor shard.
        devices: N, the devices over which the stage shards.
        stage: 0 replicates, 1 shards optimizer state (P_os), 2 gradients too (P_os+g), 3 parameters too (P_os+g+p).
        k: bytes of optimizer state per parameter.
    """
    return ModelState(
        parameters=2 * parameters / (devices if stage >= 3 else 1),
        gradients=2 * parameters / (devices if stage >= 2 else 1),
        optimizer=k * parameters / (devices if stage >= 1 else 1),
    )


def largest_model(bytes_per_device: float, devices: int, stage: Stage, tensor: int = 1, k: int = K) -> float:
    """The most parameters whose model state fits (ZeRO Table 2): `model_state` solved for Ψ, times tensor shards."""
    return tensor * bytes_per_device / model_state(1, devices, stage, k).total


def traffic(stage: Stage) -> int:
    """Elements that a device sends in a step, in units of Ψ, for a large N (ZeRO section 7).

    2 at stages 0 to 2 (reduce-scatter and all-gather, of gradients or of the new parameters); 3 at stage 3, which
    gathers the parameters for the forward and again for the backward pass and reduce-scatters the gradients.
    """
    return 3 if stage == 3 else 2


def ring_traffic(stage: Stage, devices: int) -> Fraction:
    """What a ring of N devices really sends, in units of Ψ: (N - 1) / N of `traffic`. Nothing when N is 1."""
    return traffic(stage) * Fraction(devices - 1, devices)


@dataclasses.dataclass(frozen=True)
class Table1Row:
    """One cell row of ZeRO's Table 1."""

    parameters: float
    devices: int
    gigabytes: dict[Stage, float]
    """Model state per device in GB (1e9 bytes) for stages 1, 2 and 3."""


def table_1() -> list[Table1Row]:
    """ZeRO Table 1: 7.5B, 128B and 1T parameters over 1 to 1024 devices."""
    return [
        Table1Row(
            parameters,
            devices,
            {stage: model_state(parameters, devices, stage).total / 1e9 for stage in STAGES if stage},
        )
        for devices in TABLE_1_DEVICES
        for parameters in TABLE_1_MODELS
    ]


@dataclasses.dataclass(frozen=True)
class Table2Row:
    """One row of ZeRO's Table 2, its theoretical half."""

    tensor: int
    """Degree of model parallelism."""
    devices: int
    """All of them: `tensor` × N."""
    parameters: dict[Stage, float]
    """The largest model that fits, for stages 0 to 3."""


def table_2() -> list[Table2Row]:
    """ZeRO Table 2, theoretical: the largest model on devices of 32 GB at N = 64, model parallelism 1 to 16."""
    return [
        Table2Row(
            tensor,
            tensor * TABLE_2_DEVICES,
            {stage: largest_model(TABLE_2_BYTES, TABLE_2_DEVICES, stage, tensor) for stage in STAGES},
        )
        for tensor in TABLE_2_TENSOR
    ]


@dataclasses.dataclass(frozen=True)
class TrainingCompute:
    """One row of GPT-3's Table D.1."""

    parameters: int
    tokens: float
    flops: float
    """6 per parameter and token; attention left out, as in the paper."""

    @property
    def pf_days(self) -> float:
        return self.flops / PF_DAY


def training_compute(config: ModelConfig, tokens: float = TrainConfig.tokens) -> TrainingCompute:
    """The row of GPT-3's Table D.1 for a model, from its own counted parameters."""
    return TrainingCompute(count_params(config), tokens, train_flops_per_token(config) * tokens)
