"""The picture of `gpt3-jax report in-context`, like GPT-3's Figure 1.2 (optional: matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt3_jax.plan.picture import pyplot, save
from gpt3_jax.reports.in_context import Row, curve

_COLOURS = {"small": "#f29d38", "middle": "#5b9bd5", "large": "#1f4e79"}
_GROUPS = {
    "single": "known rules, words never seen",
    "composed": "known compositions, words never seen",
    "composed-held-out": "compositions never seen",
}
"""The panels, and what stands above them."""


def draw(rows: Sequence[Row], path: str) -> None:
    """Accuracy against K: a panel for each group of rules, a colour for each size.

    Raises:
        UserError: there is no matplotlib.
        RunError: the picture cannot be written.
    """
    plt = pyplot()
    with plt.rc_context({"svg.hashsalt": "gpt3-jax", "svg.fonttype": "none"}):
        figure, panels = plt.subplots(1, len(_GROUPS), figsize=(11, 3.9), sharey=True, layout="constrained")
        for axes, (group, title) in zip(panels, _GROUPS.items(), strict=True):
            for size in dict.fromkeys(row.size for row in rows):
                _lines(axes, rows, size, group)
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("examples in the context, K")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("answers that are right, %")
        panels[0].set_ylim(-3, 103)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
        save(figure, path)


def _lines(axes: Any, rows: Sequence[Row], size: str, group: str) -> None:
    parameters = next(row.parameters for row in rows if row.size == size)
    for instructed, shuffled, style, what in (
        (True, False, "--", "instruction and examples"),
        (False, False, "-", "examples"),
        (False, True, ":", "examples of other rules"),
    ):
        found = curve(rows, size, group, instructed, shuffled)
        if found is None:
            continue
        mean, error = ([100 * value for value in values] for values in (found.mean, found.error))
        places = [_place(k) for k in found.shots]
        label = f"{parameters / 1e6:.2f}M parameters, {what}"
        axes.errorbar(places, mean, error, color=_COLOURS[size], linestyle=style, marker="o", ms=3, lw=1.4, label=label)
    shots = sorted({row.shots for row in rows})
    axes.set_xticks([_place(k) for k in shots], [str(k) for k in shots])


def _place(shots: int) -> int:
    """Doublings from one example on, with K = 0 one step before."""
    return shots.bit_length()
