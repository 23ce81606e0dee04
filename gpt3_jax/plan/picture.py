"""Pictures of plans (optional: matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt3_jax.errors import RunError, UserError
from gpt3_jax.plan.receipt import Receipt

_COLOURS = {
    "master weights": "#1f4e79",
    "moments": "#5b9bd5",
    "batch": "#7f7f7f",
    "gathered weights": "#2e7d32",
    "gradients": "#f29d38",
    "activations": "#8e5ea2",
    "logits": "#c2185b",
    "temporary": "#bdbdbd",
    "gaps": "#e6e6e6",
    "results": "#a1887f",
    "program": "#4d4d4d",
}
FORMATS = (".png", ".svg", ".pdf")


def check_picture(path: str) -> None:
    """Refuses, before anything is compiled, a picture that could not be drawn or written.

    Raises:
        UserError: another format than `FORMATS`, a folder that does not exist, or no matplotlib.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise UserError(f"the picture {path!r} has no known format; expected a name that ends in {', '.join(FORMATS)}")
    if not Path(path).resolve().parent.is_dir():
        raise UserError(f"the folder of the picture {path!r} does not exist; make it first")
    pyplot()


def memory_bars(receipts: Sequence[Receipt], labels: Sequence[str], path: str) -> None:
    """Memory of one device by purpose, a bar for each receipt (as in ZeRO's Figure 1), with the device's capacity.

    Raises:
        RunError: the picture cannot be written.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(9.5, 1.6 + 0.55 * len(receipts)), layout="constrained")
    places = range(len(receipts))
    for name, colour in _COLOURS.items():
        sizes = [_size(receipt, name) / 2**30 for receipt in receipts]
        if any(sizes):
            starts = [sum(_size(r, n) for n in _before(name)) / 2**30 for r in receipts]
            axes.barh(places, sizes, left=starts, color=colour, label=name, edgecolor="white", linewidth=0.4)
    for place, receipt in enumerate(receipts):
        axes.text(receipt.memory.total / 2**30, place, f" {receipt.memory.total / 2**30:.2f}", va="center", fontsize=8)
    usable = [r.memory.usable for r in receipts if r.memory.usable]
    if usable and max(r.memory.total for r in receipts) > 0.3 * min(usable):
        axes.axvline(min(usable) / 2**30, color="black", linestyle="--", linewidth=1, label="capacity")
    axes.set_yticks(list(places), list(labels), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("GiB on one device")
    axes.margins(x=0.12)
    figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def save(figure: Any, path: str) -> None:
    """Writes a figure and closes it. Raises RunError if it cannot be written."""
    undated = {"Date": None} if path.lower().endswith(".svg") else None  # what has not changed gives the same file
    try:
        figure.savefig(path, dpi=150, metadata=undated)
    except OSError as error:
        raise RunError(f"the picture {path!r} cannot be written: {error.strerror or error}") from None
    finally:
        pyplot().close(figure)


def _size(receipt: Receipt, name: str) -> int:
    memory = receipt.memory
    beside = {"gaps": memory.gaps, "results": memory.results, "program": memory.code}
    return beside[name] if name in beside else memory.purposes.get(name, 0)


def _before(name: str) -> list[str]:
    names = list(_COLOURS)
    return names[: names.index(name)]


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files. Raises UserError if matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("a picture needs matplotlib; install it with pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as drawing

    return drawing
