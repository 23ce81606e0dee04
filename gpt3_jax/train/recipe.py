"""The paper's recipe beside a configuration's: every quantity, with each deviation marked.

The paper's values are those of the shipped configuration of the same shape (``configs/gpt3-*.yaml``) and the defaults
of `gpt3_jax.config`; they stand nowhere else.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from gpt3_jax.config import Config, preset, presets
from gpt3_jax.model.params import count_params, decay_mask, names

# (section, field, where in the paper, whether the paper publishes it)
_QUANTITIES = (
    ("model", "n_layers", "Table 2.1", True),
    ("model", "d_model", "Table 2.1; 13B corrected from 5140", True),
    ("model", "n_heads", "Table 2.1; XL corrected from 24", True),
    ("model", "d_head", "Table 2.1", True),
    ("model", "d_ff", "section 2.1: four times the width", True),
    ("model", "n_ctx", "section 2.1", True),
    ("model", "n_vocab", "GPT-2's vocabulary", True),
    ("model", "attention_pattern", "section 2.1; the order is not published", True),
    ("model", "band_width", "", False),
    ("model", "init_std", "GPT-2's code", True),
    ("model", "position_init_std", "GPT-2's code", True),
    ("model", "residual_init", "", False),
    ("model", "norm_eps", "GPT-2's code", True),
    ("optimizer", "peak_lr", "Table 2.1", True),
    ("optimizer", "warmup_tokens", "appendix B", True),
    ("optimizer", "decay_tokens", "appendix B", True),
    ("optimizer", "decay_after_warmup", "", False),
    ("optimizer", "final_lr_fraction", "appendix B", True),
    ("optimizer", "beta1", "appendix B", True),
    ("optimizer", "beta2", "appendix B", True),
    ("optimizer", "eps", "appendix B", True),
    ("optimizer", "weight_decay", "appendix B", True),
    ("optimizer", "clip_norm", "appendix B", True),
    ("train", "tokens", "Table 2.1", True),
    ("train", "batch_tokens", "Table 2.1, in whole sequences", True),
    ("train", "ramp_start_tokens", "appendix B", True),
    ("train", "ramp_tokens", "appendix B: by size; which within these is not published", True),
    ("train", "ramp_stages", "appendix B: linear; in how many steps is not published", False),
    ("data", "tokenizer", "GPT-2's BPE", True),
)
# Of all sizes together; the shipped configurations choose within it.
_RAMP_TOKENS = (4_000_000_000, 12_000_000_000)
_MIXTURE = (60, 22, 8, 8, 3)
"""Common Crawl, WebText2, Books1, Books2, Wikipedia: per cent, though they sum to 101."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One quantity of the recipe."""

    quantity: str
    paper: Any
    """The paper's value, or the lowest and the highest; None when no size of the paper has this shape."""
    here: Any
    """The configuration's; None when it does not say (a shipped size names no data)."""
    source: str
    published: bool

    @property
    def deviates(self) -> bool:
        if not self.published or self.paper is None or self.here is None:
            return False
        if self.quantity == "train.ramp_tokens":
            return not self.paper[0] <= self.here <= self.paper[1]
        return bool(self.paper != self.here)


def check(config: Config) -> tuple[str | None, list[Row]]:
    """The paper's size of the same shape (None if there is none) and the recipe, quantity by quantity.

    Without such a size the quantities that depend on it have no paper's value; those common to all sizes have.
    """
    sizes = _papers_sizes()
    size = next((name for name, paper in sizes.items() if _shape(paper) == _shape(config)), None)
    common = next(iter(sizes.values()))
    by_size = {"n_layers", "d_model", "n_heads", "d_head", "d_ff", "peak_lr", "batch_tokens"}
    rows = []
    for section, field, source, published in _QUANTITIES:
        reference = sizes[size] if size else None if field in by_size else common
        paper = getattr(getattr(reference, section), field) if reference and published else None
        if field == "ramp_tokens":
            paper = _RAMP_TOKENS
        rows.append(Row(f"{section}.{field}", paper, getattr(getattr(config, section), field), source, published))
    rows.append(Row("parameters.decayed", None, _decayed(config), "", False))
    sources = sorted((source.weight for source in config.data.train), reverse=True)
    # Only the paper's own five datasets can be compared: other sources are another corpus, or one in several parts.
    paper = _shares(_MIXTURE) if len(sources) == len(_MIXTURE) else None
    where = "Table 2.2: shares in %, its 101 normalised, largest first; compared for five sources"
    rows.append(Row("data.mixture", paper, _shares(sources) if sources else None, where, True))
    n = count_params(config.model)
    rows.append(Row("parameters", count_params(sizes[size].model) if size else None, n, "Table D.1", True))
    return size, rows


def _shares(weights: Sequence[float]) -> tuple[float, ...]:
    """Per cent of their sum, to a tenth."""
    return tuple(round(100 * weight / sum(weights), 1) for weight in weights)


def _decayed(config: Config) -> tuple[str, ...]:
    """The kinds of parameters that weight decay applies to: what their names end in."""
    mask = decay_mask(config.model, config.optimizer.weight_decay_on)
    return tuple(
        sorted(
            {name.rpartition("_")[2] for name, decays in zip(names(mask), jax.tree.leaves(mask), strict=True) if decays}
        )
    )


@functools.cache
def _papers_sizes() -> dict[str, Config]:
    """The shipped configurations; reading the eight of them takes a second."""
    return {name: preset(name) for name in presets()}


def _shape(config: Config) -> tuple[int, int]:
    return config.model.n_layers, config.model.d_model


def record(config: Config) -> dict[str, Any]:
    """The check as JSON, for a checkpoint."""
    size, rows = check(config)
    return {
        "size": size,
        "quantities": [dataclasses.asdict(row) | {"deviates": row.deviates} for row in rows],
    }


def render(config: Config) -> str:
    """The check as a table for a person."""
    size, rows = check(config)
    cells = [("quantity", "paper", "here", "", "source")]
    for row in rows:
        paper = "not published" if not row.published else "-" if row.paper is None else _show(row.paper)
        if row.quantity == "train.ramp_tokens":
            paper = " to ".join(_show(end) for end in row.paper)
        cells.append((row.quantity, paper, _show(row.here), "DEVIATES" if row.deviates else "", row.source))
    widths = [max(len(line[i]) for line in cells) for i in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    deviations = sum(row.deviates for row in rows)
    head = f"The paper's {size}" if size else "No size of the paper has this depth and width; what all sizes share"
    count = "1 deviation" if deviations == 1 else f"{deviations} deviations"
    return "\n".join([f"{head}, beside this configuration: {count}", "", *lines])


def _show(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
