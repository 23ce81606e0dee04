"""Figures that others published, kept as they were printed: the CSV files of ``reports/figures/``, and a printed
figure beside ours."""

from __future__ import annotations

import csv
import dataclasses
import importlib.resources


@dataclasses.dataclass(frozen=True)
class Printed:
    """One file of published figures."""

    place: str
    """Where they stand: paper, table, what is counted."""
    rows: tuple[dict[str, str], ...]
    """Cells by the names of their columns, as text."""


def read(name: str) -> Printed:
    """The file ``reports/figures/{name}.csv``. Lines that begin with ``#`` are its place."""
    text = (importlib.resources.files("gpt3_jax.reports") / "figures" / f"{name}.csv").read_text(encoding="utf-8")
    lines = text.splitlines()
    place = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    return Printed(place, tuple(csv.DictReader(line for line in lines if not line.startswith("#"))))


@dataclasses.dataclass(frozen=True)
class Cell:
    """One figure of a paper beside ours."""

    row: str
    column: str
    printed: str
    """The paper's figure, as printed."""
    ours: float
    rounded: str
    """Ours, rounded as the paper rounds."""
    why: str = ""
    """Why the two differ, where no rounding explains it; empty elsewhere."""

    @property
    def agrees(self) -> bool:
        return self.printed == self.rounded


def differences(cells: list[Cell]) -> list[str]:
    """One line for each cell that does not agree."""
    return [
        f"  {cell.row}, {cell.column}: {cell.rounded}, the paper prints {cell.printed}; {cell.why}"
        for cell in cells
        if not cell.agrees
    ]
