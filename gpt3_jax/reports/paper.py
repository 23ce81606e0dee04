"""The papers' own tables, regenerated: ZeRO's 1 and 2, GPT-3's D.1; from the formulas, and from compiled programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from gpt3_jax.config import Config, MemoryConfig, ModelConfig, ParallelConfig, TrainConfig, preset, presets
from gpt3_jax.model.params import param_table
from gpt3_jax.plan import formulas
from gpt3_jax.plan.formulas import STAGES, TABLE_1_DEVICES, TABLE_1_MODELS, Stage
from gpt3_jax.plan.table import count, grid

_SHAPES = {7.5e9: (36, 4096, 32), 128e9: (70, 12288, 96), 1e12: (126, 25600, 160)}
"""Layers, width and heads of GPTs of these sizes. The paper gives no shapes; these are within 1 % of the sizes."""


def zero_config(parameters: float, devices: int, stage: Stage, n_ctx: int = 128) -> Config:
    """A GPT of one of Table 1's sizes, one short sequence a device: model state outweighs everything else.

    Raises:
        KeyError: a size that Table 1 does not have.
    """
    layers, width, heads = _SHAPES[parameters]
    return state_config(ModelConfig(n_layers=layers, d_model=width, n_heads=heads, n_ctx=n_ctx), devices, stage)


def state_config(model: ModelConfig, devices: int, stage: Stage) -> Config:
    """One sequence a device, every block recomputed: a step whose memory is its model state, as far as can be."""
    tokens = devices * model.n_ctx
    return Config(
        model=model,
        parallel=ParallelConfig(stage=stage, data=devices, reduce_dtype="bfloat16"),
        train=TrainConfig(batch_tokens=tokens),
        memory=MemoryConfig(remat="full", loss_chunk=model.n_ctx),
    )


def largest_gathered(model: ModelConfig) -> int:
    """Bytes of the largest layer that stage 3 gathers at once, in its dtype: a block, or the token embedding."""
    table = param_table(model)
    block = sum(spec.size // spec.shape[0] for spec in jax.tree.leaves(table.blocks))
    return max(block, table.token_embedding.size) * (2 if model.dtype == "bfloat16" else 4)


TABLE_1_TOPOLOGIES = {
    "v5p": {4: "v5p:2x2x1", 16: "v5p:2x2x4", 64: "v5p:4x4x4", 256: "v5p:4x8x8", 1024: "v5p:8x8x16"},
    "h100": {4: "h100:1x4", 16: "h100:2x8", 64: "h100:8x8", 256: "h100:32x8", 1024: "h100:128x8"},
}
"""Machines of Table 1's N devices, by family."""


def zero_table_1(compiled: Mapping[tuple[float, int, Stage], int] | None = None) -> str:
    """ZeRO's Table 1 as text: GB per device by the formula; and of the compiled step, for the bytes in `compiled`."""
    cells = {(row.parameters, row.devices): row.gigabytes for row in formulas.table_1()}
    rows = []
    for devices in TABLE_1_DEVICES:
        row = [str(devices)]
        for parameters in TABLE_1_MODELS:
            for stage in STAGES[1:]:
                text = _gb(cells[parameters, devices][stage])
                if compiled and (cell := compiled.get((parameters, devices, stage))):
                    text += f" ({_gb(cell / 1e9)})"
                row.append(text)
        rows.append(row)
    names = {1: "os", 2: "os+g", 3: "os+g+p"}
    head = ["N", *(f"{count(p)} {names[s]}" for p in TABLE_1_MODELS for s in STAGES[1:])]
    title = "ZeRO Table 1: GB of model state per device"
    return title + (" (in brackets: all memory of the compiled step)" if compiled else "") + "\n" + grid(rows, head)


def zero_table_2() -> str:
    """ZeRO's Table 2, the theoretical half: the largest model that fits 32 GB at N = 64."""
    rows = [[str(r.tensor), str(r.devices), *(count(r.parameters[s]) for s in STAGES)] for r in formulas.table_2()]
    return "ZeRO Table 2: largest model on devices of 32 GB, N = 64\n" + grid(
        rows, ["MP", "devices", "baseline", "os", "os+g", "os+g+p"], left=2
    )


def gpt3_table_d1(tokens: float = TrainConfig.tokens) -> str:
    """GPT-3's Table D.1 for the eight sizes, from their counted parameters."""
    rows = []
    for name in presets():
        row = formulas.training_compute(preset(name).model, tokens)
        rows.append([name, f"{row.parameters:,}", count(row.tokens), f"{row.flops:.2e}", f"{row.pf_days:,.3g}"])
    head = ["model", "parameters", "tokens", "FLOPs", "PF-days"]
    return "GPT-3 Table D.1: training compute, 6 per parameter and token\n" + grid(rows, head)


def as_data(compiled: Mapping[tuple[float, int, Stage], int] | None = None) -> dict[str, Any]:
    """The three tables for a program; with `compiled`, its bytes beside the cells that it has."""
    table_1 = [dataclasses.asdict(row) for row in formulas.table_1()]
    for row in table_1 if compiled is not None else ():
        cells = {stage: (compiled or {}).get((row["parameters"], row["devices"], stage)) for stage in STAGES[1:]}
        row["compiled_bytes"] = {stage: size for stage, size in cells.items() if size is not None}
    return {
        "zero_table_1": table_1,
        "zero_table_2": [dataclasses.asdict(row) for row in formulas.table_2()],
        "gpt3_table_d1": {
            name: dataclasses.asdict(row) | {"pf_days": row.pf_days} for name, row in _compute(presets())
        },
    }


def _compute(names: Iterable[str]) -> Iterable[tuple[str, formulas.TrainingCompute]]:
    return ((name, formulas.training_compute(preset(name).model)) for name in names)


def _gb(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.3g}"
