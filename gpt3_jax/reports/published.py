"""Step times that others measured and published, with all that a prediction of them needs.

The data are ``figures/published_runs.csv`` and ``figures/published_models.csv``. Each run is a configuration that its
authors ran, with the commit where configuration and figure stand. Its measured step time is what they count per token
(FLOPs by their own convention at that commit, or just tokens) over their rate.

Left out, and why:

- MLPerf GPT-3: states the time to a target loss over a part of the data, with evaluations in it, and ran in lower
  precision (fp8 in NVIDIA's submissions; int8 in MaxText's own script for v5p), whose peak is twice as high. No bf16
  step time can be had from it.
- Megatron-LM: rows with a pipeline, whose schedule and microbatches are not published; and the strong scaling, which is
  two rounded MFU and a picture.
- Pax 126M: what it recomputes is not clear. Of its other models the rows with fused kernels (TE) are taken, which are
  there for both devices.
- LLM Foundry: other sequence lengths, fp8, and A100 of 40 GB, which the table of devices does not hold. Levanter's runs
  on v3 and torchtitan's on H100 of 500 W and other memory: the same.

Read with care: MaxText's 16B to 1024B are its `global_parameter_scale` on the base model of late 2023. The Llamas'
remat policy (minimal_flash) also keeps what attention gives: nearest to recomputing nothing. The network of A3 (800
Gb/s for a node's eight GPUs) is recalled, not looked up.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, cast

from gpt3_jax.parallel.mesh import AXES, MeshShape
from gpt3_jax.plan.elementwise import Remat
from gpt3_jax.reports.figures import read


@dataclasses.dataclass(frozen=True)
class Shape:
    """A decoder of plain blocks, with attention of its own width."""

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_ff: int
    n_vocab: int
    n_ctx: int
    tied: bool = True
    """Whether the output matrix is the embedding."""
    gated: bool = False
    """Whether the MLP has a third matrix, for its gate."""

    @property
    def d_attention(self) -> int:
        return self.n_heads * self.d_head

    @property
    def block_params(self) -> int:
        """Of all blocks' matrices."""
        return self.n_layers * self.d_model * (4 * self.d_attention + (3 if self.gated else 2) * self.d_ff)

    @property
    def params(self) -> int:
        """Matrices and embeddings; biases and norms are less than a thousandth."""
        return self.block_params + self.n_vocab * self.d_model * (1 if self.tied else 2)

    @property
    def matmul_params(self) -> int:
        """Those that each token is multiplied with: an embedding that is only looked up is left out."""
        return self.block_params + self.n_vocab * self.d_model

    @property
    def attention_flops(self) -> int:
        """Per token, score and value matmuls, forward and backward, as if every position saw all of them."""
        return 12 * self.n_layers * self.d_attention * self.n_ctx


Unit = Literal[
    "tokens/s/device", "sequences/s", "s/step", "TFLOP/s 6N", "TFLOP/s 6N + attention", "TFLOP/s 6N + attention/2"
]
"""What a published figure is. FLOPs are a device's per second: 6 per parameter that a token is multiplied with, with
attention as if every position saw all of them, or half of that."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One published configuration and what it reached."""

    system: str
    model: str
    shape: Shape
    device_kind: str
    slice_dims: tuple[int, ...]
    """Of one slice, in chips; empty for GPUs."""
    mesh: MeshShape
    """A replica is a slice."""
    sequences: float
    """Per device and step."""
    stage: Literal[1, 2, 3]
    microbatches: int
    remat: Remat
    flash: bool
    """Whether attention ran in a kernel, which also skips what is not visible."""
    reduce_bytes: int
    """Of a gradient when it is reduced."""
    network: float | None
    """Bytes per second and device between nodes, where it is not the device's own."""
    figure: float
    """As published, in `unit`."""
    unit: Unit
    calibrates: bool
    """Whether the family's matmul efficiency is set from this row. All others are held out."""
    source: str

    @property
    def xla(self) -> bool:
        """Whether the same compiler made the program that makes ours; PyTorch's are run operation by operation."""
        return self.system in ("MaxText", "Pax")

    @property
    def devices(self) -> int:
        return self.mesh.devices

    @property
    def tokens(self) -> int:
        """Of the batch."""
        return round(self.sequences * self.devices * self.shape.n_ctx)

    @property
    def seconds(self) -> float:
        """Of a step, measured."""
        tokens = self.tokens / self.devices
        if self.unit == "s/step":
            return self.figure
        if self.unit == "sequences/s":
            return self.sequences * self.devices / self.figure
        if self.unit == "tokens/s/device":
            return tokens / self.figure
        attention = {"TFLOP/s 6N": 0.0, "TFLOP/s 6N + attention": 1.0, "TFLOP/s 6N + attention/2": 0.5}[self.unit]
        per_token = 6.0 * self.shape.matmul_params + attention * self.shape.attention_flops
        return per_token * tokens / (self.figure * 1e12)


def _models() -> dict[tuple[str, str], Shape]:
    sizes = ("n_layers", "d_model", "n_heads", "d_head", "d_ff", "n_vocab", "n_ctx")
    return {
        (row["system"], row["model"]): Shape(
            **{name: int(row[name]) for name in sizes}, tied=row["tied"] == "yes", gated=row["gated"] == "yes"
        )
        for row in read("published_models").rows
    }


def _row(row: dict[str, str], models: dict[tuple[str, str], Shape]) -> Row:
    return Row(
        system=row["system"],
        model=row["model"],
        shape=models[row["system"], row["model"]],
        device_kind=row["device"],
        slice_dims=tuple(int(extent) for extent in row["slice"].split("x") if extent),
        mesh=MeshShape(**{axis: int(row.get(axis, 1)) for axis in AXES}),
        sequences=float(row["sequences"]),
        stage=cast(Literal[1, 2, 3], int(row["stage"])),
        microbatches=int(row["microbatches"]),
        remat=cast(Remat, row["remat"]),
        flash=row["attention"] == "kernel",
        reduce_bytes=int(row["reduce bytes"]),
        network=float(row["network GB/s"]) * 1e9 if row["network GB/s"] else None,
        figure=float(row["figure"]),
        unit=cast(Unit, row["unit"]),
        calibrates=row["calibrates"] == "yes",
        source=row["source"],
    )


ROWS = tuple(_row(row, _models()) for row in read("published_runs").rows)
