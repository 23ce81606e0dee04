"""Step times that others measured and published, with all that a prediction of them needs: data, and no method.

Each row is a configuration that its authors ran, with the commit where configuration and figure stand. The measured
step time is what they count per token (FLOPs by their own convention at that commit, or just tokens) over their rate.

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
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from gpt3_jax.plan.elementwise import Remat


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


@dataclasses.dataclass(frozen=True)
class Row:
    """One published configuration and what it reached."""

    system: str
    model: str
    shape: Shape
    device_kind: str
    slice_dims: tuple[int, ...]
    """Of one slice, in chips; empty for GPUs."""
    replica: int
    """Slices."""
    data: int
    tensor: int
    sequences: float
    """Per device and step."""
    remat: Remat
    flash: bool
    """Whether attention ran in a kernel, which also skips what is not visible."""
    rate: float
    """Published: what `unit` counts, per second and device."""
    unit: Callable[[Shape], float]
    """What the authors count in a token: itself, or FLOPs by their convention."""
    source: str
    stage: Literal[1, 2, 3] = 3
    microbatches: int = 1
    reduce_bytes: int = 2
    """Of a gradient when it is reduced."""
    network: float | None = None
    """Bytes per second and device between nodes, where it is not the device's own."""
    calibrates: bool = False
    """Whether the family's matmul efficiency is set from this row. All others are held out."""

    @property
    def xla(self) -> bool:
        """Whether the same compiler made the program that makes ours; PyTorch's are run operation by operation."""
        return self.system in ("MaxText", "Pax")

    @property
    def devices(self) -> int:
        return self.replica * self.data * self.tensor

    @property
    def tokens(self) -> int:
        """Of the batch."""
        return round(self.sequences * self.devices * self.shape.n_ctx)

    @property
    def seconds(self) -> float:
        """Of a step, measured."""
        return self.unit(self.shape) * self.tokens / self.devices / self.rate


def one_token(_: Shape) -> float:
    return 1.0


def six_n(shape: Shape) -> float:
    return 6.0 * shape.matmul_params


def six_n_and_full_attention(shape: Shape) -> float:
    return 6.0 * shape.matmul_params + shape.attention_flops


def six_n_and_half_attention(shape: Shape) -> float:
    return 6.0 * shape.matmul_params + shape.attention_flops / 2


def _maxtext(scale: int, n_ctx: int = 2048) -> Shape:
    """MaxText's `global_parameter_scale` on its base model of late 2023: 16 blocks of 2560, 8 heads of 256, relu."""
    thirds, rest = divmod(scale.bit_length() - 1, 3)
    heads = 2 ** (thirds + (rest > 0))
    return Shape(16 * 2**thirds, 2560 * 2 ** (thirds + (rest > 1)), 8 * heads, 256, 8192 * heads, 32768, n_ctx)


def _v5e() -> list[Row]:
    source = "AI-Hypercomputer/maxtext 9bc243c95 (README.md) and e47fa1b5d, MaxText/configs/largest_job"
    published = {
        16: (6, 1, (120, 117, 117, 115, 111, 108)),
        32: (4, 1, (132, 128, 126, 125, 123, 119)),
        64: (2, 1, (118, 112, 110, 108, 105, 99)),
        128: (1, 16, (110, 110, 108, 104, 100, 91)),
    }
    return [
        Row(
            "MaxText",
            f"{scale}B",
            _maxtext(scale),
            "TPU v5 lite",
            (16, 16),
            replica=2**i,
            data=256 // tensor,
            tensor=tensor,
            sequences=batch,
            remat="full",
            flash=False,
            rate=teraflops * 1e12,
            unit=six_n_and_full_attention,
            source=source,
            calibrates=tensor == 1 and i == 0,
        )
        for scale, (batch, tensor, measured) in published.items()
        for i, teraflops in enumerate(measured)
    ]


def _v5p() -> list[Row]:
    source = "AI-Hypercomputer/maxtext 76bd53b0f, MaxText/configs/v5p"
    # scale: (sequences per chip, tensor, remat, {dims of a slice: TFLOP/s on one and on two slices})
    published: dict[int, tuple[int, int, Remat, dict[tuple[int, ...], tuple[int, int]]]] = {
        32: (8, 4, "dots", {(4, 4, 4): (328, 319)}),
        64: (4, 4, "dots", {(4, 4, 4): (323, 309)}),
        128: (2, 8, "dots", {(4, 4, 8): (315, 305), (4, 8, 8): (316, 274)}),
        256: (2, 8, "dots", {(8, 8, 8): (308, 289)}),
        512: (2, 16, "full", {(8, 8, 8): (294, 282)}),
        1024: (2, 16, "full", {(8, 8, 16): (254, 237), (8, 16, 16): (297, 279)}),
    }
    return [
        Row(
            "MaxText",
            f"{scale}B",
            _maxtext(scale),
            "TPU v5p",
            dims,
            replica=replica,
            data=dims[0] * dims[1] * dims[2] // tensor,
            tensor=tensor,
            sequences=batch,
            remat=remat,
            flash=True,
            rate=teraflops * 1e12,
            unit=six_n_and_half_attention,
            source=source,
        )
        for scale, (batch, tensor, remat, slices) in published.items()
        for dims, measured in slices.items()
        for replica, teraflops in enumerate(measured, start=1)
    ]


def _v4() -> list[Row]:
    rows = []
    for name, shape, dims, batch, measured, commit in (
        ("22B", Shape(48, 6144, 24, 256, 24576, 32768, 1024), (4, 4, 4), 16, (156, 152, 149, 146), "281e04bf3"),
        ("52B", Shape(32, 12288, 32, 256, 49152, 32768, 1024), (4, 4, 12), 10, (154, 162), "e286533d8"),
    ):
        for i, teraflops in enumerate(measured):
            rows.append(
                Row(
                    "MaxText",
                    name,
                    shape,
                    "TPU v4",
                    dims,
                    replica=2**i,
                    data=dims[0] * dims[1] * dims[2],
                    tensor=1,
                    sequences=batch,
                    remat="full",
                    flash=False,
                    rate=teraflops * 1e12,
                    unit=six_n,
                    calibrates=i == 0,
                    source=f"AI-Hypercomputer/maxtext {commit}, README.md and MaxText/configs/*v4-*.sh",
                )
            )
    return rows


def _megatron() -> list[Row]:
    """The rows without a pipeline: the schedules of the others are not published."""
    source = "NVIDIA/Megatron-LM f2e5db402, README.md and images/model_table.png"
    return [
        Row(
            "Megatron-LM",
            name,
            Shape(layers, width, heads, 128, 4 * width, 131072, 4096, tied=False),
            "NVIDIA H100 80GB HBM3",
            (),
            replica=1,
            data=48,
            tensor=tensor,
            sequences=192 / (48 * tensor),
            remat="none",
            flash=True,
            rate=teraflops * 1e12,
            unit=six_n_and_full_attention,
            source=source,
            stage=1,
            reduce_bytes=4,
        )
        for name, layers, width, heads, tensor, teraflops in (
            ("1.7B", 24, 2048, 16, 1, 408.8),
            ("7.1B", 30, 4096, 32, 2, 465.9),
            ("16B", 32, 6144, 48, 4, 489.1),
            ("32B", 48, 7168, 56, 8, 459.6),
        )
    ]


def _jax_on_gpus() -> list[Row]:
    h100, a100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"
    llama = Shape(32, 4096, 32, 128, 11008, 32000, 4096, tied=False, gated=True)
    common: dict[str, Any] = {"slice_dims": (), "tensor": 1, "flash": True}
    # The Llamas' policy (minimal_flash) also keeps what attention gives: nearest to recomputing nothing.
    a3 = [
        Row(
            "MaxText",
            "Llama 2 7B",
            llama,
            h100,
            replica=2**i,
            data=8,
            sequences=4,
            remat="none",
            rate=teraflops * 1e12,
            unit=six_n_and_half_attention,
            network=12.5e9,  # A3: 800 Gb/s for a node's eight GPUs (recalled, not looked up)
            calibrates=i == 0,
            source="AI-Hypercomputer/maxtext efb6d9e4a, MaxText/configs/a3/llama_2_7b",
            **common,
        )
        for i, teraflops in enumerate((492, 422, 407, 409, 375))
    ]
    toolbox = Row(
        "MaxText",
        "Llama 2 7B",
        llama,
        h100,
        replica=1,
        data=8,
        sequences=2,
        remat="none",
        rate=2 * 4096 / 0.721,
        unit=one_token,
        calibrates=True,
        source="NVIDIA/JAX-Toolbox bcbbfa57, docs/frameworks/maxtext/README.md",
        **common,
    )
    shapes = {"5B": Shape(24, 4096, 32, 128, 16384, 50304, 2048), "175B": Shape(96, 12288, 96, 128, 49152, 50257, 2048)}
    remats: dict[str, Remat] = {"5B": "dots", "175B": "full"}
    pax = [
        Row(
            "Pax",
            model,
            shapes[model],
            kind,
            replica=1,
            data=256,
            sequences=sequences,
            remat=remats[model],
            rate=per_second * 2048 / 256,
            unit=one_token,
            source="NVIDIA/JAX-Toolbox 8b3ce014, pax/README.md; google/paxml b397693, gpu/scripts_gpu/configs.py",
            **common,
        )
        for model, kind, sequences, per_second in (
            ("5B", h100, 8, 1657.24),
            ("175B", h100, 6, 51.00),
            ("5B", a100, 8, 718.19),
            ("175B", a100, 6, 20.44),
        )
    ]
    return [*a3, toolbox, *pax]


_REMAT: dict[str, Remat] = {"full": "full", "none": "none"}
_MPT = {
    "125m": (12, 768, 12),
    "350m": (24, 1024, 16),
    "760m": (24, 1536, 12),
    "1b": (24, 2048, 16),
    "3b": (32, 2560, 20),
    "7b": (32, 4096, 32),
    "13b": (40, 5120, 40),
    "30b": (48, 7168, 56),
    "70b": (80, 8192, 64),
}
"""Blocks, width and heads: GPT-3's sizes, and two more."""

# Model, GPUs, sequences in a microbatch, microbatches, ZeRO stage, remat, tokens per second and GPU.
_MPT_H100 = """
70b 512 8 1 3 full 1007, 70b 256 8 1 3 full 1035, 70b 128 8 1 3 full 1058, 70b 64 8 4 3 full 1039
70b 32 2 16 3 full 882
30b 512 8 1 3 full 2115, 30b 256 8 1 3 full 2148, 30b 128 8 1 3 full 2199, 30b 32 14 3 3 full 2308
30b 16 10 3 3 full 2263, 30b 8 3 21 3 full 2002
13b 512 16 1 3 full 4952, 13b 256 16 1 3 full 4989, 13b 128 16 1 3 full 5080
13b 64 2 1 3 none 4800, 13b 32 2 1 3 none 4811, 13b 16 2 1 3 none 4767, 13b 8 2 1 3 none 4792
7b 512 6 1 3 none 9670, 7b 256 6 1 3 none 10119, 7b 128 6 1 3 none 10475, 7b 8 6 1 3 none 10643
3b 512 8 1 2 none 21664, 3b 256 8 1 2 none 22772, 3b 128 8 1 2 none 23422
3b 64 6 3 3 none 22525, 3b 32 6 3 3 none 23021, 3b 16 10 3 3 none 24142
1b 512 12 1 2 none 39837, 1b 256 12 1 2 none 42555, 1b 128 12 1 2 none 44123
1b 64 20 1 3 none 44402, 1b 32 20 1 3 none 45130, 1b 16 20 1 3 none 46037, 1b 8 14 1 3 none 45455
760m 32 24 1 3 none 67971, 760m 16 24 1 3 none 68551, 760m 8 24 2 3 none 63147
"""
_MPT_A100 = """
70b 64 8 4 3 full 410, 70b 32 2 16 3 full 373, 30b 8 3 21 3 full 916, 13b 8 2 3 3 none 2262
7b 8 6 2 3 none 4641, 3b 8 10 2 3 none 10811, 1b 8 14 4 3 none 20513, 760m 8 24 2 3 none 32434
350m 8 32 2 3 none 58782, 125m 8 40 2 3 none 142830, 125m 8 32 2 3 none 141737
"""


def _mpt(table: str, device_kind: str) -> list[Row]:
    """All rows in bf16 with sequences of 2,048 tokens."""
    rows = []
    for line in table.replace(",", "\n").split("\n"):
        if not line:
            continue
        model, gpus, sequences, microbatches, stage, remat, rate = line.split()
        layers, width, heads = _MPT[model]
        rows.append(
            Row(
                "LLM Foundry",
                model,
                Shape(layers, width, heads, width // heads, 4 * width, 50368, 2048),
                device_kind,
                (),
                replica=1,
                data=int(gpus),
                tensor=1,
                sequences=int(sequences) * int(microbatches),
                remat=_REMAT[remat],
                flash=True,
                rate=float(rate),
                unit=one_token,
                stage=3 if stage == "3" else 2,
                microbatches=int(microbatches),
                reduce_bytes=4,
                calibrates=gpus == "8" and "A100" in device_kind,
                source="mosaicml/llm-foundry 495218376, scripts/train/benchmarking/README.md",
            )
        )
    return rows


ROWS: tuple[Row, ...] = (
    *_v4(),
    *_v5e(),
    *_v5p(),
    *_jax_on_gpus(),
    *_mpt(_MPT_H100, "NVIDIA H100 80GB HBM3"),
    *_mpt(_MPT_A100, "NVIDIA A100-SXM4-80GB"),
    *_megatron(),
)
