"""Pictures of the probes of bias (optional: matplotlib)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt3_jax.plan.picture import pyplot, save
from gpt3_jax.probes.cooccurrence import SHOWN, Cooccurrence
from gpt3_jax.probes.occupations import PAPER_RATIO, Occupations
from gpt3_jax.probes.results import RUN_ON, TITLES, Bias
from gpt3_jax.probes.sentiment import Sentiment
from gpt3_jax.probes.winogender import PAPER, Winogender

_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")
_BARS = {"capsize": 2, "linewidth": 1.2, "elinewidth": 0.8, "markersize": 4}


def draw(result: Bias, folder: Path) -> list[str]:
    """Draws a picture for each probe, and returns the files' names: ``occupations.png``, …

    Raises:
        UserError: matplotlib is not installed.
        RunError: a picture cannot be written.
    """
    made = []
    for probe in result.setup.probes:
        found = {model: probes[probe] for model, probes in result.found.items()}
        name = f"{probe}.png"
        panels = {Occupations: _occupations, Winogender: _winogender, Cooccurrence: _words, Sentiment: _sentiment}
        figure = panels[type(next(iter(found.values())))](found, result)
        figure.suptitle(TITLES[probe], fontsize=10)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # words in a script that the font does not have
            save(figure, str(folder / name))
        made.append(name)
    return made


def _occupations(found: Mapping[str, Any], result: Bias) -> Any:
    """A dot for each occupation, the mean with its standard error, and the paper's mean."""
    plt = pyplot()
    figure, axes = plt.subplots(
        len(found), 1, figsize=(7, 0.9 + 1.7 * len(found)), layout="constrained", squeeze=False, sharex=True
    )
    for ax, (model, probe) in zip(axes.flat, found.items(), strict=True):
        for place, (name, variant) in enumerate(probe.variants.items()):
            ratios = list(variant.ratios.values())
            # Spread by their order in the list, so that dots of equal ratio do not hide one another.
            spread = [place + 0.5 * ((7 * n) % len(ratios) / len(ratios) - 0.5) for n in range(len(ratios))]
            ax.plot(ratios, spread, ".", color=_COLOURS[place], alpha=0.35, markersize=4)
            ax.errorbar([variant.mean], [place], xerr=[variant.stderr or 0], fmt="kD", label="mean ± s.e.", **_BARS)
            ax.plot([PAPER_RATIO[name]], [place], "k|", markersize=16, label="paper, 175B")
        ax.axvline(0, color="0.7", linewidth=1)
        ax.set_yticks(range(len(probe.variants)), list(probe.variants), fontsize=8)
        ax.invert_yaxis()
        ax.set_title(f"{model}\n{RUN_ON}" if result.runs_on(model) else model, fontsize=9)
        _plain(ax)
    axes.flat[-1].set_xlabel("log(P(female) / P(male)): left of 0 is male-leaning", fontsize=8)
    _legend(figure, axes.flat[0])
    return figure


def _winogender(found: Mapping[str, Any], result: Bias) -> Any:
    """Accuracy of all sentences, and by the right answer and the gender of the pronoun."""
    plt = pyplot()
    names = list(next(iter(found.values())).cells())
    figure, ax = plt.subplots(figsize=(9, 3.6), layout="constrained")
    width = 0.8 / len(found)
    for n, (model, probe) in enumerate(found.items()):
        cells = probe.cells()
        places = [place + (n - (len(found) - 1) / 2) * width for place in range(len(names))]
        values, errors = [cells[name][0] for name in names], [cells[name][1] or 0 for name in names]
        ax.bar(places, values, width, yerr=errors, color=_COLOURS[n % 8], label=model, error_kw={"linewidth": 0.8})
    marks = [name for name in names if name in PAPER]
    ax.plot(
        [names.index(name) for name in marks], [PAPER[name] for name in marks], "kD", markersize=4, label="paper, 175B"
    )
    ax.axhline(50, color="0.7", linewidth=1, label="chance")
    ax.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names], fontsize=7)
    ax.set_ylabel("accuracy, %", fontsize=8)
    ax.set_ylim(0, 100)
    _plain(ax)
    _legend(figure, ax)
    return figure


def _words(found: Mapping[str, Any], result: Bias) -> Any:
    """For each group, outputs with its most favoured words, beside the others' outputs."""
    plt = pyplot()
    panels = [(model, group) for model, probe in found.items() for group in probe.words]
    columns = min(3, len(next(iter(found.values())).words))
    rows = -(-len(panels) // columns)
    size = (0.6 + 2.7 * columns, 0.8 + 2.4 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for ax, (model, group) in zip(axes.flat, panels, strict=False):
        words = found[model].words[group][:SHOWN]
        places = range(len(words))
        here, there = [w.per_thousand for w in words], [w.elsewhere for w in words]
        ax.barh([p - 0.2 for p in places], here, 0.4, color=_COLOURS[0])
        ax.barh([p + 0.2 for p in places], there, 0.4, color="0.75")
        ax.set_yticks(places, [w.word + (" *" if w.q < 0.05 else "") for w in words], fontsize=7)
        ax.set_ylim(max(len(words), 5) - 0.4, -0.6)
        ax.set_xlabel("outputs with the word, of 1,000", fontsize=7)
        ax.set_title(f"{group}, {model}" if len(found) > 1 else group, fontsize=8)
        if not words:
            ax.set_xlim(0, 1000)
            ax.set_yticks([])
            ax.text(0.5, 0.5, "no word", transform=ax.transAxes, ha="center", fontsize=8)
        _plain(ax)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    # Bars of a panel without words have no colour; these two are drawn for the legend.
    for label, colour in (("this group", _COLOURS[0]), ("the others", "0.75")):
        axes.flat[0].bar([0], [0], color=colour, label=label)
    axes.flat[0].plot([], [], " ", label="*: false discovery rate below 5 %")
    _legend(figure, axes.flat[0])
    return figure


def _sentiment(found: Mapping[str, Any], result: Bias) -> Any:
    """Sentiment of each race, against parameters if there are several models (Figure 6.1)."""
    plt = pyplot()
    figure, ax = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    parameters = {model["name"]: model.get("parameters") or 0 for model in result.models}
    races = list(next(iter(found.values())).races)
    by_size = len(found) > 1 and all(parameters[model] for model in found)
    order = sorted(found, key=lambda model: parameters[model])
    for n, race in enumerate(races):
        points = [(model, found[model].races[race]) for model in order if found[model].races[race].score is not None]
        values, errors = [each.score for _, each in points], [each.stderr or 0 for _, each in points]
        if by_size:
            places = [parameters[model] for model, _ in points]
            ax.errorbar(places, values, yerr=errors, marker="o", color=_COLOURS[n % 8], label=race, **_BARS)
        else:
            ax.errorbar([n] * len(points), values, yerr=errors, fmt="o", color=_COLOURS[n % 8], label=race, **_BARS)
    if by_size:
        ax.set_xscale("log")
        ax.set_xlabel("parameters", fontsize=8)
        _legend(figure, ax)
    else:
        ax.set_xticks(range(len(races)), races, fontsize=8)
    ax.axhline(0, color="0.7", linewidth=1)
    ax.set_ylabel("sentiment, -100 to 100, ± s.e.", fontsize=8)
    _plain(ax)
    return figure


def _plain(ax: Any) -> None:
    ax.tick_params(labelsize=7, which="both")
    ax.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, ax: Any) -> None:
    handles = {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
