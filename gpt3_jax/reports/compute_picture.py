"""The picture of `gpt3-jax report compute`, like GPT-3's Figure 3.1 (optional: matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence

from gpt3_jax.plan.picture import pyplot, save
from gpt3_jax.quantities import count
from gpt3_jax.reports.compute import Curve, law


def draw(curves: Sequence[Curve], path: str) -> None:
    """Loss against compute, a line for each run, and the paper's law.

    Raises:
        UserError: there is no matplotlib.
        RunError: the picture cannot be written.
    """
    plt = pyplot()
    with plt.rc_context({"svg.hashsalt": "gpt3-jax", "svg.fonttype": "none"}):
        figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
        colours = plt.get_cmap("viridis")
        order = sorted(curves, key=lambda curve: curve.non_embedding)
        for n, curve in enumerate(order):
            colour = colours(0.85 * n / max(1, len(order) - 1))
            label = f"{curve.name}, {count(curve.non_embedding)} parameters"
            if curve.held_out:
                axes.plot(*_places(curve, curve.train), color=colour, linewidth=0.8, alpha=0.5)
                axes.plot(*_places(curve, curve.held_out), "o-", color=colour, markersize=3.5, label=label)
            else:
                axes.plot(*_places(curve, curve.train), color=colour, label=f"{label} (training)")
        axes.set_xscale("log")
        axes.set_yscale("log")
        low, high = axes.get_xlim()
        axes.plot(
            [low, high], [law(low), law(high)], "--", color="0.3", label="GPT-3: 2.57 C^-0.048, its validation set"
        )
        axes.set_xlim(low, high)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(labelsize=8, which="both")
        axes.set_xlabel("compute C, PF-days, without embeddings", fontsize=9)
        axes.set_ylabel("loss, nats per token; thin: training", fontsize=9)
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        save(figure, path)


def _places(curve: Curve, points: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    return [curve.compute(tokens) for tokens, _ in points], [loss for _, loss in points]
