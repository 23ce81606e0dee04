"""The picture of a contamination study, as the paper's Figure 4.2 (optional: matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt3_jax.evals.metrics import METRICS
from gpt3_jax.plan.picture import pyplot, save
from gpt3_jax.reports.contamination_scores import Scores
from gpt3_jax.reports.table_c1 import table_c1

PICTURE = "contamination.png"


def draw(scored: Sequence[Scores], folder: Path) -> Path | None:
    """Clean share against the relative difference of clean to all, with error bars, over the paper's points. None if
    there is nothing to draw.

    Raises:
        UserError: matplotlib is not installed.
        RunError: the picture cannot be written.
    """
    points = [each for each in scored if each.relative is not None and METRICS[each.metric].better > 0]
    if not points:
        return None
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    rows = [row for row in table_c1() if row.dirty is not None]
    axes.scatter(
        [row.clean_percent for row in rows],
        [100 * (row.clean / row.all - 1) for row in rows],
        color="#bbbbbb", s=14, label="paper, 175B, few-shot (Table C.1)",
    )  # fmt: skip
    for model in dict.fromkeys(each.model for each in points):
        own = [each for each in points if each.model == model]
        axes.errorbar(
            [100 * each.clean.items / each.all.items for each in own],
            [each.relative for each in own],
            yerr=[each.relative_stderr or 0 for each in own],
            fmt="o", markersize=5, capsize=3, label=model,
        )  # fmt: skip
        for each in own:
            at = 100 * each.clean.items / each.all.items, each.relative
            axes.annotate(f" {each.task}, K = {each.shots}", at, fontsize=7, va="bottom")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="clean items, per cent", ylabel="clean against all, per cent of all (± standard error)")
    axes.legend(fontsize=8)
    path = folder / PICTURE
    save(figure, str(path))
    return path
