"""Compares the paper's recipe with what a configuration runs, quantity by quantity, and marks deviations.

What runs is the configuration with the batch sizes that the mesh allows. The paper's values are those of the shipped
configurations (``configs/gpt3-*.yaml``), the defaults and sources of `gpt3_jax.config.schema`, and the figures of
`gpt3_jax.config.paper`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from gpt3_jax.config import Config, ParallelConfig, SourceConfig, preset, presets
from gpt3_jax.config.paper import MIXTURE, PRINTED
from gpt3_jax.config.setting import Paper, meanings
from gpt3_jax.errors import UserError
from gpt3_jax.model.params import count_params
from gpt3_jax.parallel.mesh import MeshShape
from gpt3_jax.train.schedule import BatchSchedule, line_updates, updates

_DERIVED = {
    "model.n_heads": {"d_head": Paper("Table 2.1"), "d_ff": Paper("section 2.1: four times the width")},
}
"""Quantities of the paper that follow from settings, by the setting that they are listed after."""
_UPDATES_APART = 0.01
_BATCH_APART = 1.5
"""The ramp counts as too coarse if a batch is more than this factor above or below the paper's line."""
_DATASETS = {
    "Common Crawl": r"crawl|(^|[^a-z])cc([^a-z]|$)",
    "WebText2": r"web[ _-]?text",
    "Books1": r"books?[ _-]?(corpus)?[ _-]?1",
    "Books2": r"books?[ _-]?(corpus)?[ _-]?2",
    "Wikipedia": r"wiki",
}
"""Regular expressions that recognise a dataset by its path."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One quantity of the recipe."""

    quantity: str
    paper: Any
    """The paper's value, or its bounds; None if the paper publishes none."""
    here: Any
    """What runs; None if the configuration does not say (a shipped size names no data)."""
    source: str
    published: bool
    mark: str = ""
    """`DEVIATES`; or `rounded` or `corrected` if a shipped size intentionally differs from the printed value."""

    @property
    def deviates(self) -> bool:
        return self.mark == "DEVIATES"


@dataclasses.dataclass(frozen=True)
class Size:
    """The paper's size that a configuration is compared with."""

    name: str
    exact: bool
    """Whether depth and width agree with this size; if not, it is the nearest size."""


def data_shards(parallel: ParallelConfig, devices: int | None) -> int:
    """Number of parts into which a batch is split: replica × data.

    Args:
        devices: number of devices of the run; None if the mesh settings determine it.

    Raises:
        UserError: the mesh does not have this many devices.
    """
    shape = asked = MeshShape.asked(parallel)
    if asked.data == -1:
        shape = dataclasses.replace(asked, data=(devices or 0) // dataclasses.replace(asked, data=1).devices)
    if not shape.devices or shape.devices != (devices or shape.devices):
        raise UserError(
            f"mesh {asked} does not make {devices} devices; choose axes that do, or name the devices of the run by "
            "--devices"
        )
    return shape.batch_shards


def check(config: Config, schedule: BatchSchedule) -> tuple[Size, list[Row]]:
    """The paper's size to compare with, and the recipe, quantity by quantity.

    Args:
        schedule: the batch sizes of the run on its mesh.
    """
    size, paper = _nearest_size(config)
    rows = []
    for section, field, meaning in meanings(Config):
        if meaning.paper is None or (section, field) == ("data", "train"):
            continue
        rows.append(_row(f"{section}.{field}", meaning.paper, config, paper, size, schedule))
        for derived, source in _DERIVED.get(f"{section}.{field}", {}).items():
            rows.append(_row(f"{section}.{derived}", source, config, paper, size, schedule))
    rows += [*_update_rows(config, schedule), _mixture(config.data.train)]
    rows.append(Row("dropout", None, "none", "not mentioned; there is no setting for it", False))
    wanted, found = count_params(paper.model), count_params(config.model)
    rows.append(Row("parameters", wanted, found, "Table D.1", True, "DEVIATES" if wanted != found else ""))
    return size, rows


def _row(quantity: str, source: Paper, config: Config, paper: Config, size: Size, schedule: BatchSchedule) -> Row:
    wanted, here = _value(paper, quantity), _effective(config, quantity, schedule)
    if excluded := _excluded(config, quantity, schedule):
        return Row(quantity, None, here, f"{source.source}; {excluded}", source.published, "DEVIATES")
    if not source.published:
        return Row(quantity, None, here, source.source, False)
    if source.between:
        low, high = source.between
        return Row(quantity, source.between, here, source.source, True, "" if low <= here <= high else "DEVIATES")
    if quantity == "model.attention_pattern":
        return Row(quantity, wanted, here, source.source, True, "" if _alternates(here) else "DEVIATES")
    if here is not None and wanted != here:
        by_mesh = quantity == "train.ramp_start_tokens" and _value(config, quantity) == wanted
        why = "; the smallest batch that the mesh and the microbatch divide" if by_mesh else ""
        return Row(quantity, wanted, here, source.source + why, True, "DEVIATES")
    if (size.name, quantity) in PRINTED:
        printed, done, why = PRINTED[size.name, quantity]
        return Row(quantity, printed, here, f"{source.source}; {done}: {why}", True, done)
    return Row(quantity, wanted, here, source.source, True)


def _value(config: Config, quantity: str) -> Any:
    section, field = quantity.split(".")
    return getattr(getattr(config, section), field)


def _effective(config: Config, quantity: str, schedule: BatchSchedule) -> Any:
    """What runs, if it is not the setting itself."""
    if quantity == "train.ramp_start_tokens":
        return schedule.sizes[0].sequences * config.model.n_ctx if config.train.ramp_tokens else None
    if quantity == "train.ramp_sizes":
        return len(schedule.sizes)
    return _value(config, quantity)


def _excluded(config: Config, quantity: str, schedule: BatchSchedule) -> str:
    """Why the paper excludes this value of a quantity that it does not publish; empty if it does not exclude it."""
    model = config.model
    if quantity == "model.band_width" and "banded" in model.attention_pattern and model.band_width >= model.n_ctx:
        return "a band as wide as the context is dense attention"
    if quantity == "model.residual_init" and model.residual_init == "none":
        return "GPT-2's are scaled by depth"
    if quantity == "train.ramp_sizes" and (apart := _farthest_from_the_line(config, schedule)) > _BATCH_APART:
        return f"a batch is up to {apart:.1f} times the line's, or the line's of it"
    return ""


def _alternates(pattern: Sequence[str]) -> bool:
    """Whether dense and banded layers alternate, whichever comes first."""
    return len(pattern) % 2 == 0 and all(a != b for a, b in itertools.pairwise(pattern))


def _farthest_from_the_line(config: Config, schedule: BatchSchedule) -> float:
    """The largest ratio between a batch and the paper's line, in either direction, from where the line reaches the
    smallest batch."""
    train, ctx = config.train, config.model.n_ctx

    def line(sequence: int) -> float:
        climbed = min(1.0, sequence * ctx / train.ramp_tokens) if train.ramp_tokens else 1.0
        return (train.ramp_start_tokens + (train.batch_tokens - train.ramp_start_tokens) * climbed) / ctx

    apart = 1.0
    for size, following in itertools.pairwise(schedule.sizes):
        end = line(following.first_sequence)
        apart = max(apart, end / size.sequences, following.sequences / end)
    return apart


def _update_rows(config: Config, schedule: BatchSchedule) -> Iterator[Row]:
    """The number of updates with these batch sizes, beside that of the paper's line with the same settings."""
    ours, line = updates(config, schedule), line_updates(config)
    for quantity, made, wanted, of in (
        ("updates", ours.total, line.total, "train.tokens"),
        ("updates.warmup", ours.warmup, line.warmup, "the learning rate's warm-up"),
    ):
        apart = abs(made - wanted) > max(1.0, _UPDATES_APART * wanted)
        source = f"appendix B: a linear ramp, with these settings; in {of}"
        yield Row(quantity, round(wanted), round(made), source, True, "DEVIATES" if apart else "")


def _mixture(sources: Sequence[SourceConfig]) -> Row:
    """Recognises datasets by their paths. Five sources that are not recognised are taken in the table's order."""
    wanted = _shares(list(MIXTURE.values()))
    source = "Table 2.2: shares in %, its 101 normalised"
    if not sources:
        return Row("data.mixture", wanted, None, source, True)
    found = [_dataset(one.path) for one in sources]
    if None not in found:
        weights = [sum(s.weight for s, name in zip(sources, found, strict=True) if name == d) for d in MIXTURE]
        source += "; datasets by the names of their paths"
    else:
        weights = [one.weight for one in sources]
        source += "; datasets in its order" if len(sources) == len(MIXTURE) else "; not its five datasets"
    here = _shares(weights)
    return Row("data.mixture", wanted, here, source, True, "" if here == wanted else "DEVIATES")


def _dataset(path: str) -> str | None:
    """The dataset that the path names, searched from its last component upwards."""
    for part in reversed(path.lower().split("/")):
        named = [dataset for dataset, words in _DATASETS.items() if re.search(words, part)]
        if named:
            return named[0] if len(named) == 1 else None
    return None


def _shares(weights: Sequence[float]) -> tuple[float, ...]:
    """Percentages of the sum, to one decimal."""
    return tuple(round(100 * weight / sum(weights), 1) for weight in weights)


def _nearest_size(config: Config) -> tuple[Size, Config]:
    """The nearest size by the ratios of depth and width."""
    sizes = _papers_sizes()

    def apart(name: str) -> float:
        model = sizes[name].model
        ratios = (config.model.n_layers / model.n_layers, config.model.d_model / model.d_model)
        return sum(abs(math.log(ratio)) for ratio in ratios)

    name = min(sizes, key=apart)
    return Size(name, apart(name) == 0), sizes[name]


@functools.cache
def _papers_sizes() -> dict[str, Config]:
    """The shipped configurations."""
    return {name: preset(name) for name in presets()}


def record(config: Config, schedule: BatchSchedule) -> dict[str, Any]:
    """The check as JSON, for a checkpoint."""
    size, rows = check(config, schedule)
    return {
        "size": size.name if size.exact else None,
        "nearest": size.name,
        "quantities": [dataclasses.asdict(row) | {"deviates": row.deviates} for row in rows],
    }


def render(config: Config, schedule: BatchSchedule, shards: int) -> str:
    """Formats the check as a table."""
    size, rows = check(config, schedule)
    cells = [("quantity", "paper", "here", "", "source")]
    for row in rows:
        paper = "not published" if row.paper is None else _show(row.paper)
        if isinstance(row.paper, tuple) and row.quantity == "train.ramp_tokens":
            paper = " to ".join(map(_show, row.paper))
        cells.append((row.quantity, paper, _show(row.here), row.mark, row.source))
    widths = [max(len(line[i]) for line in cells) for i in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    deviations = sum(row.deviates for row in rows)
    count = "1 deviation" if deviations == 1 else f"{deviations} deviations"
    near = "" if size.exact else ", the nearest in depth and width,"
    parts = f"{shards} data shards (replica × data)" if shards > 1 else "one data shard"
    return "\n".join([f"The paper's {size.name}{near} beside what runs on {parts}: {count}", "", *lines])


def _show(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else str(value)
