"""The papers' tables: ours, rounded as the paper rounds, are the figures that it prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from gpt3_jax.model.params import count_params
from gpt3_jax.plan import formulas
from gpt3_jax.plan.formulas import Stage
from gpt3_jax.reports import gpt3_tables, zero_state, zero_tables
from gpt3_jax.reports.figures import Cell, read

TABLES: dict[str, Callable[[], Sequence[Cell]]] = {
    "zero_table_1": zero_tables.table_1,
    "zero_table_2": zero_tables.table_2,
    "zero_figure_1": zero_tables.figure_1,
    "gpt3_table_2_1": gpt3_tables.table_2_1,
    "gpt3_table_d1": gpt3_tables.table_d1,
}
# Cells that no rounding explains: (row, column), the paper's figure, ours.
PART = {
    ("gpt3-medium", "n_params", "350M", "356M"),
    ("gpt3-xl", "n_heads", "24", "16"),
    ("gpt3-13b", "d_model", "5140", "5120"),
    ("gpt3-175b", "batch", "3.2M", "3M"),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_is_the_papers_or_says_why_not(name: str) -> None:
    cells = TABLES[name]()
    apart = {(c.row, c.column, c.printed, c.rounded) for c in cells if not c.agrees}
    assert apart == (PART if name == "gpt3_table_2_1" else set())
    for cell in cells:
        assert cell.agrees == (cell.why == ""), cell


@pytest.mark.parametrize(("name", "cells"), [("zero_table_1", 54), ("zero_table_2", 20), ("gpt3_table_2_1", 56)])
def test_no_cell_of_a_paper_is_left_out(name: str, cells: int) -> None:
    assert len(TABLES[name]()) == cells
    assert read(name).place.startswith(("ZeRO (arXiv 1910.02054v3), Table", "GPT-3 (arXiv 2005.14165), Table"))


def test_what_rounds_half_up_and_what_is_cut_off() -> None:
    values = (41.25, 21.5625, 1.875, 0.1171875, 99.96, 513.5, 4187.9)
    assert [zero_tables.rounded_gigabytes(v) for v in values] == [
        "41.3", "21.6", "1.88", "0.12", "100", "513", "4187"
    ]  # fmt: skip
    assert zero_tables.rounded_parameters(15.283582e9, 2) == "15.2B"
    assert zero_tables.rounded_parameters(512e9, 4) == "0.5T"


def test_a_figure_apart_from_the_papers_is_told() -> None:
    cell = Cell("N 4", "7.5B os+g", "41.3", 41.25, "41.2", "of no reason")
    from gpt3_jax.reports.figures import differences

    assert differences([cell]) == ["  N 4, 7.5B os+g: 41.2, the paper prints 41.3; of no reason"]


@pytest.mark.parametrize("stage", formulas.STAGES)
def test_on_one_device_every_stage_is_the_same(stage: Stage) -> None:
    assert formulas.model_state(10, 1, stage).total == 160


def test_what_each_stage_shards() -> None:
    states = [formulas.model_state(100, 10, stage) for stage in formulas.STAGES]
    assert [state.optimizer for state in states] == [1200, 120, 120, 120]
    assert [state.gradients for state in states] == [200, 200, 20, 20]
    assert [state.parameters for state in states] == [200, 200, 200, 20]


def test_gradient_shards_are_in_the_dtype_of_their_reduction_and_whole_gradients_in_bf16() -> None:
    wide = [zero_state.held(100, 10, stage, "float32").gradients for stage in formulas.STAGES]
    narrow = [zero_state.held(100, 10, stage, "bfloat16").gradients for stage in formulas.STAGES]
    assert wide == [200, 200, 40, 40] and narrow == [200, 200, 20, 20]


@pytest.mark.parametrize("stage", formulas.STAGES)
def test_the_largest_model_fills_the_device(stage: Stage) -> None:
    parameters = zero_tables.largest_model(32e9, 64, stage, tensor=4)
    assert formulas.model_state(parameters / 4, 64, stage).total == pytest.approx(32e9)


def test_traffic() -> None:
    assert [formulas.traffic(stage) for stage in formulas.STAGES] == [2, 2, 2, 3]


@pytest.mark.parametrize("parameters", zero_tables.MODELS.values())
def test_the_models_that_are_compiled_for_table_1_have_its_sizes(parameters: float) -> None:
    devices = {int(row["devices"]) for row in read("zero_table_1").rows}
    for rows in zero_state.TABLE_1_TOPOLOGIES.values():
        assert set(rows) == devices - {1}
    model = zero_state.table_1_config(parameters, 64, 1, "float32").model
    assert count_params(model) == pytest.approx(parameters, rel=0.01)
    assert model.d_model % max(devices) == 0, "every row shards it"
