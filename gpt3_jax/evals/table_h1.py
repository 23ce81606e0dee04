"""The paper's own results: Table H.1, as printed, from ``figures/gpt3_table_h1.csv``."""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
from collections.abc import Mapping

from gpt3_jax.config import ModelConfig, preset

SIZES: Mapping[str, str] = {
    "Small": "gpt3-small",
    "Medium": "gpt3-medium",
    "Large": "gpt3-large",
    "XL": "gpt3-xl",
    "2.7B": "gpt3-2.7b",
    "6.7B": "gpt3-6.7b",
    "13B": "gpt3-13b",
    "175B": "gpt3-175b",
}
"""The table's sizes and our configurations of them."""
_METRICS: Mapping[str, tuple[str, ...]] = {
    "accuracy": ("acc",),
    "exact match": ("acc", "em"),
    "TriviaQA exact match": ("acc",),
    "SQuAD exact match": ("acc", "em"),
    "SQuAD F1": ("f1",),
    "CoQA F1": ("f1",),
    "QuAC F1": ("f1",),
    "DROP F1": ("f1",),
    "BLEU": ("BLEU-sb",),
    "macro F1": ("f1",),
    "all answers right": ("acc",),
    "F1a": ("f1a",),
    "ReCoRD F1": ("f1",),
    "perplexity of the completion": ("ppl",),
}
"""Our metrics and what the table calls them."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One task and metric."""

    task: str
    metric: str
    """As the table calls it: acc, em, f1, ppl, BLEU-mb, …"""
    split: str
    shots: int
    """K of few-shot."""
    values: Mapping[tuple[str, str], float]
    """By setting (0S, 1S, FS) and size; per cent but for perplexities and BLEU."""


@functools.cache
def table_h1() -> tuple[Row, ...]:
    """All rows of Table H.1."""
    text = (importlib.resources.files("gpt3_jax.evals") / "figures" / "gpt3_table_h1.csv").read_text(encoding="utf-8")
    found = []
    for row in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
        values = {
            (setting, size): float(row[f"{setting}_{size}"])
            for setting in ("0S", "1S", "FS")
            for size in SIZES
            if row[f"{setting}_{size}"]
        }
        found.append(Row(row["task"], row["metric"], row["split"], int(row["K"]), values))
    return tuple(found)


def row_of(task: str | None, metric: str) -> Row | None:
    """The table's row for one of our metrics; None if it has none."""
    named = _METRICS.get(metric, (metric,))
    return next((row for row in table_h1() if row.task == task and row.metric in named), None)


def setting_of(row: Row, shots: int) -> str | None:
    """The table's setting with K = `shots`; None for a K that the table does not have."""
    return {0: "0S", 1: "1S", row.shots: "FS"}.get(shots)


def size_of(config: ModelConfig) -> str | None:
    """The paper's size with as many layers and heads of the same width; None if there is none."""
    for size, name in SIZES.items():
        model = preset(name).model
        if (model.n_layers, model.d_model, model.n_heads) == (config.n_layers, config.d_model, config.n_heads):
            return size
    return None


def paper_value(task: str | None, metric: str, shots: int, size: str | None) -> float | None:
    """The paper's value for a size with K = `shots`; None where the table has none."""
    row = row_of(task, metric)
    setting = row and setting_of(row, shots)
    return row.values.get((setting, size)) if row and setting and size else None
