"""ZeRO's model state read from compiled steps: cells of Table 1, and stages 0 to 3 of one model as in Figure 1.

Each step is made to hold little but model state: one short sequence a device, every block recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from gpt3_jax.config import Config, MemoryConfig, ModelConfig, ParallelConfig, TrainConfig
from gpt3_jax.model.params import param_table
from gpt3_jax.plan.formulas import STAGES, ModelState, Stage, model_state
from gpt3_jax.plan.receipt import Receipt
from gpt3_jax.quantities import grid, size

N_CTX = 128
"""Tokens of the one sequence that each device has."""
_SHAPES = {7.5e9: (36, 4096, 32), 128e9: (70, 12288, 96), 1e12: (126, 25600, 160)}
"""Layers, width and heads of GPTs of Table 1's sizes. The paper gives no shapes; these are within 1 % of the sizes."""
TABLE_1_TOPOLOGIES = {
    "v5p": {4: "v5p:2x2x1", 16: "v5p:2x2x4", 64: "v5p:4x4x4", 256: "v5p:4x8x8", 1024: "v5p:8x8x16"},
    "h100": {4: "h100:1x4", 16: "h100:2x8", 64: "h100:8x8", 256: "h100:32x8", 1024: "h100:128x8"},
}
"""Machines of Table 1's N devices, by family."""


def table_1_config(parameters: float, devices: int, stage: Stage, reduce_dtype: str) -> Config:
    """A GPT of one of Table 1's sizes.

    Raises:
        KeyError: a size that Table 1 does not have.
    """
    layers, width, heads = _SHAPES[parameters]
    model = ModelConfig(n_layers=layers, d_model=width, n_heads=heads, n_ctx=N_CTX)
    return state_config(model, devices, stage, reduce_dtype)


def state_config(model: ModelConfig, devices: int, stage: Stage, reduce_dtype: str) -> Config:
    """One sequence a device, every block recomputed: a step whose memory is its model state, as far as can be."""
    return Config(
        model=model,
        parallel=ParallelConfig(stage=stage, data=devices, reduce_dtype=reduce_dtype),  # type: ignore[arg-type]
        train=TrainConfig(batch_tokens=devices * model.n_ctx),
        memory=MemoryConfig(remat="full", loss_chunk=model.n_ctx),
    )


def how_compiled(reduce_dtype: str) -> str:
    """What the compiled steps assume, in one line."""
    return (
        f"one sequence of {N_CTX} tokens a device, bf16 weights, remat full, gradients reduced in {reduce_dtype}; "
        "all memory of the step but its code"
    )


def largest_gathered(model: ModelConfig) -> int:
    """Bytes of the largest layer that stage 3 gathers at once, in its dtype: a block, or the token embedding."""
    table = param_table(model)
    block = sum(spec.size // spec.shape[0] for spec in jax.tree.leaves(table.blocks))
    return max(block, table.token_embedding.size) * (2 if model.dtype == "bfloat16" else 4)


def held(psi: float, devices: int, stage: Stage, reduce_dtype: str) -> ModelState:
    """ZeRO's formula with the dtypes of this project: from stage 2 on, gradient shards are in the dtype of their
    reduction. Up to stage 1 they are whole and in the compute dtype."""
    wide = stage >= 2 and reduce_dtype == "float32"
    return model_state(psi, devices, stage, gradient_bytes=4 if wide else 2)


def stages_text(source: str, model: ModelConfig, receipts: Sequence[Receipt]) -> str:
    """The table of `report zero`.

    Args:
        source: the name of the model.
        receipts: of `state_config` at stages 0 to 3.
    """
    reduce_dtype, gathered = receipts[0].settings["reduce_dtype"], largest_gathered(model)
    rows = []
    for stage, receipt in zip(STAGES, receipts, strict=True):
        moved, devices = receipt.zero_elements, receipt.topology["devices"]
        expected = held(moved["psi"], devices, stage, reduce_dtype).total + (gathered if stage == 3 else 0)
        total = receipt.memory.total - receipt.memory.code
        rows.append(
            (
                str(stage),
                size(receipt.memory.zero_formula),
                size(expected),
                size(total),
                f"{total / expected - 1:+.1%}",
                f"{moved['paper']:g} Ψ",
                f"{moved['program']:.3f} Ψ",
            )
        )
    head = ("stage", "ZeRO's formula", "with these dtypes", "compiled step", "", "traffic", "compiled")
    return "\n".join(
        [
            f"Model state of {source} on {receipts[0].topology['name']}",
            f"  compiled: {how_compiled(reduce_dtype)}",
            grid(rows, head),
            "  ZeRO's formula: 16-bit weights and gradients, fp32 master weights and moments, no activations",
            f"  with these dtypes: gradient shards of stages 2 and 3 in {reduce_dtype}; at stage 3 also the largest "
            f"layer that is gathered, {size(gathered)}",
        ]
    )
