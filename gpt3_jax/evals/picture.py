"""Pictures of an evaluation (optional: matplotlib), in the manner of the paper's Figures 1.2 and 3.10."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpt3_jax.config import preset
from gpt3_jax.evals.metrics import METRICS
from gpt3_jax.evals.results import Cell, Results, by_task
from gpt3_jax.evals.table_h1 import SIZES, row_of
from gpt3_jax.model.params import count_params
from gpt3_jax.plan.picture import pyplot, save

BY_SHOTS, BY_SIZE, BY_TOKENS = "shots.png", "size.png", "tokens.png"
_PAPER = {"0S": ("paper, zero-shot", ":"), "1S": ("paper, one-shot", "--"), "FS": ("paper, few-shot", "-.")}


def draw(results: Results, folder: Path) -> list[str]:
    """Draws what the results are enough for, and returns the files' names.

    `BY_SHOTS` for several K, `BY_SIZE` where models of different size or a row of Table H.1 are there, `BY_TOKENS`
    for several models with known numbers of training tokens.

    Raises:
        UserError: matplotlib is not installed.
        RunError: a picture cannot be written.
    """
    made = []
    if any(len({cell.shots for cell in cells}) > 1 for cells in by_task(results.cells).values()):
        made.append(_grid(results, folder / BY_SHOTS, "demonstrations in the prompt (K)", _by_shots))
    sizes = {model["parameters"] for model in results.models if model.get("parameters")}
    if len(sizes) > 1 or (sizes and any(cell.row for cell in results.cells)):
        made.append(_grid(results, folder / BY_SIZE, "parameters", _by("parameters", paper=True)))
    tokens = {model["tokens"] for model in results.models if model.get("tokens")}
    if len(tokens) > 1:
        made.append(_grid(results, folder / BY_TOKENS, "training tokens", _by("tokens", paper=False)))
    return made


_Panel = Callable[[Any, Results, Sequence[Cell]], None]


def _grid(results: Results, path: Path, below: str, panel: _Panel) -> str:
    plt = pyplot()
    groups = list(by_task(results.cells).items())
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.4 * columns, 0.7 + 2.5 * rows), layout="constrained", squeeze=False
    )
    handles: dict[str, Any] = {}
    for place, ((task, metric), cells) in enumerate(groups):
        ax = axes.flat[place]
        panel(ax, results, cells)
        ax.set_title(task, fontsize=9)
        unit = METRICS[metric].unit
        ax.set_ylabel(f"{metric}, {unit}" if unit else metric, fontsize=8)
        ax.set_xlabel(below, fontsize=8)
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
        handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    for ax in axes.flat[len(groups) :]:
        ax.set_visible(False)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    save(figure, str(path))
    return path.name


def _by_shots(ax: Any, results: Results, cells: Sequence[Cell]) -> None:
    for model in results.models:
        own = sorted((cell for cell in cells if cell.model == model["name"]), key=lambda cell: cell.shots_mean)
        if own:
            _points(ax, [cell.shots_mean for cell in own], own, label=model["name"])
    _chance(ax, cells)
    ax.set_xscale("symlog", linthresh=1)
    ticks = sorted({round(cell.shots_mean, 1) for cell in cells})
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    ax.minorticks_off()


def _by(what: str, paper: bool) -> _Panel:
    def panel(ax: Any, results: Results, cells: Sequence[Cell]) -> None:
        known = {model["name"]: float(model.get(what) or 0) for model in results.models}
        for shots in dict.fromkeys(cell.shots for cell in cells):
            own = [cell for cell in cells if cell.shots == shots and known[cell.model]]
            own.sort(key=lambda cell: known[cell.model])
            if own:
                _points(ax, [known[cell.model] for cell in own], own, label=f"K = {shots}")
        if paper:
            _table_h1(ax, cells[0])
        _chance(ax, cells)
        ax.set_xscale("log")

    return panel


def _points(ax: Any, places: Sequence[float], cells: Sequence[Cell], label: str) -> None:
    errors = [cell.stderr or 0.0 for cell in cells]
    ax.errorbar(places, [cell.value for cell in cells], yerr=errors, label=label, marker="o", markersize=4, capsize=2)


def _table_h1(ax: Any, cell: Cell) -> None:
    """The paper's curve of the same task and metric."""
    row = row_of(cell.row, cell.metric)
    if row is None:
        return
    sizes = [count_params(preset(name).model) for name in SIZES.values()]
    for setting, (label, style) in _PAPER.items():
        values = [row.values[setting, size] for size in SIZES]
        ax.plot(sizes, values, style, color="0.45", linewidth=1, label=label)


def _chance(ax: Any, cells: Sequence[Cell]) -> None:
    if cells[0].chance is not None:
        ax.axhline(cells[0].chance, color="0.7", linewidth=1, label="chance")
