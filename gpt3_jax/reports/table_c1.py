"""The paper's contamination study: Table C.1, as printed, from ``figures/gpt3_table_c1.csv``."""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources


@dataclasses.dataclass(frozen=True)
class Row:
    """One task, few-shot, 175B."""

    task: str
    """As Table H.1 names it."""
    split: str
    metric: str
    n: int
    all: float
    all_count: int
    dirty: float | None
    """None where no example is dirty."""
    dirty_count: int
    clean: float
    clean_count: int
    clean_percent: int
    relative_percent: int
    """Score of the clean examples relative to that of all, less 100."""


@functools.cache
def table_c1() -> tuple[Row, ...]:
    """All rows of Table C.1, from the dirtiest to the cleanest."""
    text = (importlib.resources.files("gpt3_jax.reports") / "figures" / "gpt3_table_c1.csv").read_text(encoding="utf-8")
    found = []
    for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
        found.append(
            Row(
                task=row["task"],
                split=row["split"],
                metric=row["metric"],
                n=int(row["n"]),
                all=float(row["all"]),
                all_count=int(row["all_count"]),
                dirty=float(row["dirty"]) if row["dirty"] else None,
                dirty_count=int(row["dirty_count"]),
                clean=float(row["clean"]),
                clean_count=int(row["clean_count"]),
                clean_percent=int(row["clean_percent"]),
                relative_percent=int(row["relative_percent"]),
            )
        )
    return tuple(found)


def row_of(task: str | None) -> Row | None:
    """The row of a task by its name in Table H.1; None if there is none."""
    return next((row for row in table_c1() if row.task == task), None)
