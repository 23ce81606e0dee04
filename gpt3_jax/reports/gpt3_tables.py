"""GPT-3's Tables 2.1 and D.1 for its eight sizes: the paper's figures beside those of the shipped configurations."""

from __future__ import annotations

import dataclasses
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from gpt3_jax.config import TrainConfig, preset
from gpt3_jax.model.params import count_params, train_flops_per_token
from gpt3_jax.quantities import count, grid
from gpt3_jax.reports.figures import Cell, differences, read

PF_DAY = 1e15 * 24 * 3600
"""Floating-point operations of a petaflop/s-day."""
TOKENS = float(TrainConfig.tokens)
"""That each size is trained on."""

_MISPRINTS = {
    ("gpt3-medium", "n_params"): "Table D.1 has 356M",
    ("gpt3-xl", "n_heads"): "24 heads of 128 are wider than d_model, and only 16 give Table D.1's parameters",
    ("gpt3-13b", "d_model"): "only 5120, which is 40 heads of 128, gives Table D.1's parameters",
    (
        "gpt3-175b",
        "batch",
    ): "ours is 1,536 sequences of 2,048; 3.2 million tokens are no whole number of them",
}
"""Cells of Table 2.1 that no rounding explains, with the reason for ours."""


@dataclasses.dataclass(frozen=True)
class TrainingCompute:
    """What Table D.1 counts for one size."""

    parameters: float
    flops: float
    """6 per parameter and token, over `TOKENS`; attention left out, as in the paper."""

    @property
    def pf_days(self) -> float:
        return self.flops / PF_DAY


def training_compute(name: str) -> TrainingCompute:
    """The row of GPT-3's Table D.1 for a shipped size, from its counted parameters."""
    model = preset(name).model
    return TrainingCompute(count_params(model), train_flops_per_token(model) * TOKENS)


def table_2_1() -> list[Cell]:
    """GPT-3 Table 2.1, all columns."""
    cells = []
    for row in read("gpt3_table_2_1").rows:
        config = preset(row["model"])
        model = config.model
        ours: dict[str, tuple[float, str]] = {
            "n_params": (count_params(model), _size(count_params(model))),
            "n_layers": (model.n_layers, str(model.n_layers)),
            "d_model": (model.d_model, str(model.d_model)),
            "n_heads": (model.n_heads, str(model.n_heads)),
            "d_head": (model.d_head, str(model.d_head)),
            "batch": (config.train.batch_tokens, _millions(config.train.batch_tokens)),
            "learning rate": (config.optimizer.peak_lr, f"{config.optimizer.peak_lr * 1e4:.1f}e-4"),
        }
        for column, (value, rounded) in ours.items():
            why = _MISPRINTS.get((row["model"], column), "")
            cells.append(Cell(row["model"], column, row[column], value, rounded, why))
    return cells


def table_d1() -> list[Cell]:
    """GPT-3 Table D.1: parameters, FLOPs and PF-days.

    The paper rounds parameters to three digits, from ten billion on to four, and computes the rest from the rounded
    ones, to three digits.
    """
    cells = []
    for row in read("gpt3_table_d1").rows:
        ours = training_compute(row["model"])
        parameters = _significant(ours.parameters / 1e6, 4 if ours.parameters >= 1e10 else 3)
        from_rounded = TrainingCompute(float(parameters) * 1e6, 6 * float(parameters) * 1e6 * TOKENS)
        for column, value, rounded in (
            ("params", ours.parameters, f"{int(parameters):,}"),
            ("FLOPs", ours.flops, _scientific(from_rounded.flops)),
            ("PF-days", ours.pf_days, _scientific(from_rounded.pf_days)),
        ):
            cells.append(Cell(row["model"], column, row[column], value, rounded))
    return cells


def _size(parameters: int) -> str:
    """As Table 2.1 rounds: whole millions; from a billion on tenths of one; from ten on whole ones, printed with .0."""
    if parameters < 1e9:
        return f"{_places(parameters / 1e6, 0)}M"
    return f"{_places(_places(parameters / 1e9, 0 if parameters >= 1e10 else 1), 1)}B"


def _millions(tokens: int) -> str:
    """As Table 2.1 rounds batches: a million is 2^20 here."""
    return f"{_places(tokens / 2**20, 1).normalize():f}M"


def _places(value: float | Decimal, places: int) -> Decimal:
    return Decimal(str(value)).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)


def _significant(value: float, digits: int) -> Decimal:
    number = Decimal(repr(value))
    return number.quantize(Decimal(1).scaleb(number.adjusted() - digits + 1), ROUND_HALF_UP)


def _scientific(value: float) -> str:
    """Three digits, half up: 2.25E+20."""
    number = _significant(value, 3)
    return f"{number.scaleb(-number.adjusted()):.2f}E{number.adjusted():+03d}"


def table_2_1_text() -> str:
    """Table 2.1 as text: for each size a line of ours and a line of the paper's."""
    cells = table_2_1()
    columns = list(dict.fromkeys(cell.column for cell in cells))
    rows = []
    for name in dict.fromkeys(cell.row for cell in cells):
        mine = [cell for cell in cells if cell.row == name]
        exact = {"n_params": count, "batch": lambda n: f"{n:,.0f}", "learning rate": lambda n: f"{n:.1e}"}
        rows.append([name, *(exact.get(cell.column, lambda n: f"{n:g}")(cell.ours) for cell in mine)])
        rows.append(["  paper", *(cell.printed for cell in mine)])
    return "\n".join(
        [
            "GPT-3 Table 2.1: the shipped configurations, each with the paper's line",
            grid(rows, ("", *columns)),
            "  The paper rounds parameters to whole millions, tenths of a billion, from ten billion on to whole ones;",
            "  a million tokens of a batch is 2^20. What this does not explain:",
            *differences(cells),
        ]
    )


def table_d1_text() -> str:
    """Table D.1 as text, ours beside the paper's."""
    cells = table_d1()
    rows = []
    for name in dict.fromkeys(cell.row for cell in cells):
        mine = {cell.column: cell for cell in cells if cell.row == name}
        shown = (f"{mine['params'].ours:,.0f}", f"{mine['FLOPs'].ours:.4e}", f"{mine['PF-days'].ours:,.4g}")
        rows.append(
            [name, *(text for pair in zip(shown, (c.printed for c in mine.values()), strict=True) for text in pair)]
        )
    return "\n".join(
        [
            f"GPT-3 Table D.1: training compute over {TOKENS / 1e9:.0f} billion tokens",
            "  assumed: 6 FLOPs per parameter and token, attention left out; a PF-day is 8.64e19",
            grid(rows, ("", "parameters", "paper, M", "FLOPs", "paper", "PF-days", "paper")),
            "  The paper rounds parameters to three digits, from 10 billion on to four, and computes from the rounded.",
            *(differences(cells) or ["  So rounded, every cell is the paper's."]),
        ]
    )


def as_data() -> dict[str, Any]:
    """Both for JSON."""
    return {
        name: [dataclasses.asdict(cell) | {"agrees": cell.agrees} for cell in cells]
        for name, cells in (("gpt3_table_2_1", table_2_1()), ("gpt3_table_d1", table_d1()))
    }
