"""ZeRO's Tables 1 and 2 and its Figure 1: the paper's figures beside what its formulas give.

The formulas count 16-bit weights and gradients and fp32 parameters, momentum and variance (K = 12). They leave out
activations and buffers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import Any

from gpt3_jax.plan.formulas import STAGES, K, Stage, model_state
from gpt3_jax.quantities import count, grid
from gpt3_jax.reports.figures import Cell, differences, read

MODELS = {"7.5B": 7.5e9, "128B": 128e9, "1T": 1e12}
"""Table 1's models, in parameters."""
NAMES: dict[Stage, str] = {0: "baseline", 1: "os", 2: "os+g", 3: "os+g+p"}
"""The paper's names of the stages."""
TABLE_2_DEVICES = 64
TABLE_2_BYTES = 32e9
ASSUMED = (
    f"  assumed: 16-bit weights and gradients, {K} bytes of optimizer state per parameter, no activations; 1 GB is 1e9"
)


def rounded_gigabytes(gigabytes: float) -> str:
    """As Table 1 rounds: from 100 GB on the fraction is cut off; below, three digits, half up."""
    exact = Decimal(repr(gigabytes))
    places, rounding = (0, ROUND_DOWN) if exact >= 100 else (1 if exact >= 10 else 2, ROUND_HALF_UP)
    return _plain(exact, places, rounding)


def rounded_parameters(parameters: float, tensor: int) -> str:
    """As Table 2 rounds: for one GPU to a tenth of a billion, times the degree of model parallelism; from half a
    trillion on, in trillions."""
    total = Decimal(_plain(Decimal(repr(parameters / tensor / 1e9)), 1, ROUND_HALF_UP)) * tensor
    return f"{_plain(total / 1000, 1, ROUND_HALF_UP)}T" if total >= 500 else f"{_plain(total, 1, ROUND_HALF_UP)}B"


def _plain(number: Decimal, places: int, rounding: str) -> str:
    return format(number.quantize(Decimal(1).scaleb(-places), rounding).normalize(), "f")


def largest_model(bytes_per_device: float, devices: int, stage: Stage, tensor: int = 1) -> float:
    """The most parameters whose model state fits (ZeRO Table 2): `model_state` solved for Ψ, times tensor shards."""
    return tensor * bytes_per_device / model_state(1, devices, stage).total


@dataclasses.dataclass(frozen=True)
class Table1Cell(Cell):
    """One cell of Table 1."""

    parameters: float = 0.0
    devices: int = 0
    stage: Stage = 1


def table_1() -> list[Table1Cell]:
    """ZeRO Table 1, in GB: three models, stages 1 to 3, 1 to 1024 devices."""
    cells = []
    for row in read("zero_table_1").rows:
        devices = int(row["devices"])
        for model, parameters in MODELS.items():
            for stage in STAGES[1:]:
                column = f"{model} {NAMES[stage]}"
                gigabytes = model_state(parameters, devices, stage).total / 1e9
                rounded = rounded_gigabytes(gigabytes)
                cells.append(
                    Table1Cell(f"N {devices}", column, row[column], gigabytes, rounded, "", parameters, devices, stage)
                )
    return cells


def table_2() -> list[Cell]:
    """ZeRO Table 2, the theoretical half, in parameters."""
    cells = []
    for row in read("zero_table_2").rows:
        tensor = int(row["MP"])
        for stage, name in NAMES.items():
            parameters = largest_model(TABLE_2_BYTES, TABLE_2_DEVICES, stage, tensor)
            cells.append(Cell(f"MP {tensor}", name, row[name], parameters, rounded_parameters(parameters, tensor)))
    return cells


def figure_1() -> list[Cell]:
    """ZeRO Figure 1, in GB: 7.5B parameters on 64 devices, stages 0 to 3."""
    cells = []
    for row, stage in zip(read("zero_figure_1").rows, STAGES, strict=True):
        gigabytes = model_state(7.5e9, 64, stage).total / 1e9
        rounded = _plain(Decimal(repr(gigabytes)), 1, ROUND_HALF_UP)
        cells.append(Cell(f"stage {stage}", "GB", row["gigabytes"], gigabytes, rounded))
    return cells


def table_1_text(compiled: Mapping[tuple[float, int, Stage], int] | None = None, how: str = "") -> str:
    """Table 1 as text, a block for each model: the formula, the paper's figure, and for the bytes in `compiled` the
    compiled step's. `how` says how those were compiled."""
    cells = table_1()
    parts = [f"ZeRO Table 1: GB of model state per device, N devices\n{ASSUMED}"]
    for model, parameters in MODELS.items():
        rows: dict[int, list[str]] = {}
        for cell in (cell for cell in cells if cell.parameters == parameters):
            row = rows.setdefault(cell.devices, [str(cell.devices)])
            row += [f"{cell.ours:.6g}", cell.printed]
            if compiled:
                size = compiled.get((parameters, cell.devices, cell.stage))
                row.append(f"{size / 1e9:.4g}" if size else "")
        columns = [(NAMES[stage], "paper", *(("compiled",) if compiled else ())) for stage in STAGES[1:]]
        parts.append(grid(rows.values(), [f"{model}, N", *(name for names in columns for name in names)]))
    parts.append(
        "\n".join(
            [
                "  The paper cuts off fractions from 100 GB on and rounds what is smaller to three digits, half up.",
                *(differences(list(cells)) or ["  So rounded, every cell is the paper's."]),
                *([f"  compiled: {how}"] if compiled else []),
            ]
        )
    )
    return "\n".join(parts)


def table_2_text() -> str:
    """Table 2 as text: the formula beside the paper's theory; the paper's measured half as it stands."""
    cells = table_2()
    rows = []
    for row in read("zero_table_2").rows:
        ours = [cell for cell in cells if cell.row == f"MP {row['MP']}"]
        pairs = [text for cell in ours for text in (count(cell.ours), cell.printed)]
        rows.append([row["MP"], row["GPUs"], *pairs, row["measured baseline"], row["measured os"]])
    head = ["MP", "devices", *(name for stage in NAMES.values() for name in (stage, "paper"))]
    return "\n".join(
        [
            f"ZeRO Table 2: largest model on devices of 32 GB, N = {TABLE_2_DEVICES}; measured by the paper, not by us",
            ASSUMED,
            grid(rows, [*head, "measured", "measured os"], left=2),
            "  The paper rounds for one device to a tenth of a billion, and multiplies by MP.",
            *(differences(cells) or ["  So rounded, every cell is the paper's."]),
        ]
    )


def figure_1_text() -> str:
    """Figure 1 as text."""
    cells = figure_1()
    rows = [(cell.row, f"{cell.ours:.6g}", cell.printed) for cell in cells]
    lines = ["ZeRO Figure 1: GB of model state per device, 7.5B parameters, N = 64", ASSUMED]
    return "\n".join([*lines, grid(rows, ("", "formula", "paper")), *differences(cells)])


def as_data(compiled: Mapping[tuple[float, int, Stage], int] | None = None) -> dict[str, Any]:
    """All three for JSON; with `compiled`, its bytes beside the cells of Table 1 that it has."""
    first = []
    for cell in table_1():
        first.append(dataclasses.asdict(cell) | {"agrees": cell.agrees})
        if compiled is not None:
            first[-1]["compiled_bytes"] = compiled.get((cell.parameters, cell.devices, cell.stage))
    return {
        "zero_table_1": first,
        "zero_table_2": [dataclasses.asdict(cell) | {"agrees": cell.agrees} for cell in table_2()],
        "zero_figure_1": [dataclasses.asdict(cell) | {"agrees": cell.agrees} for cell in figure_1()],
    }
