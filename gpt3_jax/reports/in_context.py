"""`gpt3-jax report in-context`: trains small models on examples of rules, and measures what they learn from examples in
their context (GPT-3 Figure 1.2)."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax

from gpt3_jax import __version__
from gpt3_jax.cluster.log import log
from gpt3_jax.cluster.start import start
from gpt3_jax.config import Config, load_config
from gpt3_jax.data.in_context.words import Split
from gpt3_jax.errors import RunError
from gpt3_jax.evals.engine import Engine
from gpt3_jax.evals.in_context import GROUPS, Accuracy, evaluate
from gpt3_jax.interop.loading import load_model
from gpt3_jax.model.params import count_params
from gpt3_jax.quantities import grid
from gpt3_jax.train import builtin, loop
from gpt3_jax.train.metrics import METRICS_FILE
from gpt3_jax.train.setup import check

CONFIG = "in-context"
SIZES: dict[str, tuple[str, ...]] = {
    "small": ("--model.d_model", "48", "--model.n_heads", "2"),
    "middle": (),
    "large": ("--model.d_model", "192", "--model.n_heads", "8"),
}
"""Sizes of the model, as overrides of the configuration."""
ITEMS = 200
ITEM_SEED = 1_000_003
"""Of the items, which are the same for all runs."""


@dataclasses.dataclass(frozen=True)
class Row(Accuracy):
    """One accuracy of one run."""

    size: str
    seed: int
    split: Split
    parameters: int
    tokens: int
    train_seconds: int
    """Time between the first and the last step, without compilation, evaluation and checkpoints."""


def config_of(size: str, seed: int, out: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of one run. The seed is that of the parameters and of the text."""
    run_dir = ["--train.run_dir", str(out / f"{size}-{seed}")]
    seeds = ["--train.seed", str(seed), "--data.seed", str(seed)]
    return load_config([CONFIG], [*SIZES[size], *overrides, *seeds, *run_dir])


def measure(size: str, config: Config, count: int = ITEMS, split: Split = "test") -> list[Row]:
    """Trains a model, or finishes its training, or finds it trained; then evaluates it.

    Args:
        count: items of each group.
        split: of their words and held-out rules.

    Raises:
        UserError: the run folder holds another configuration.
        RunError: training failed, or was stopped: the same call goes on with it.
    """
    start(config.distributed)
    checked = check(config)
    made = builtin.prepare(config)
    result = loop.run(made.config, checked)
    if result.stopped:
        raise RunError(f"stopped by {result.stopped} at {result.tokens:,} tokens; the same command goes on from there")
    folder = Path(config.train.run_dir)
    log.info(f"evaluating {folder}")
    engine = Engine.of(load_model(folder), consume=True)
    found = evaluate(engine, GROUPS, count, ITEM_SEED, split)
    seconds, parameters = round(train_seconds(folder / METRICS_FILE)), count_params(config.model)
    return [
        Row(
            **dataclasses.asdict(each),
            size=size,
            seed=config.train.seed,
            split=split,
            parameters=parameters,
            tokens=result.tokens,
            train_seconds=seconds,
        )
        for each in found
    ]


def train_seconds(metrics: Path) -> float:
    """Seconds of training by the rates in a run's metrics, over all of its starts."""
    seconds, before = 0.0, 0
    for text in metrics.read_text(encoding="utf-8").splitlines():
        entry = json.loads(text)
        if entry["kind"] == "train":
            if rate := entry.get("tokens_per_second"):
                seconds += (entry["tokens"] - before) / rate
            before = entry["tokens"]
    return seconds


def to_csv(rows: Iterable[Row], notes: Sequence[str]) -> str:
    """The rows as CSV, under lines of notes that begin with #."""
    text = io.StringIO()
    text.writelines(f"# {note}\n" for note in notes)
    names = ["size", "seed", "split", "parameters", "tokens", "train_seconds"]
    names += [field.name for field in dataclasses.fields(Accuracy)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: int(v) if isinstance(v, bool) else v for name, v in vars(row).items()} for row in rows)
    return text.getvalue()


def notes(argv: Sequence[str]) -> list[str]:
    """What a file of rows says of itself: the command, what ran it, and what its columns count."""
    command = shlex.join(["gpt3-jax", "report", *argv])
    devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores"
    return [
        command,
        f"gpt3-jax {__version__}, jax {jax.__version__}, {devices}",
        *(f"{group.name}: {group.about}" for group in GROUPS),
        "instructed: the instruction stands at the top. shuffled: the examples are of other rules. shots: K",
        "dropped: examples that the context could not hold, over all items",
    ]


@dataclasses.dataclass(frozen=True)
class Curve:
    """Accuracy against K, over the seeds of one size."""

    shots: tuple[int, ...]
    mean: tuple[float, ...]
    """Between 0 and 1."""
    error: tuple[float, ...]
    """Standard error of the mean over seeds, or of one seed's proportion."""
    seeds: int


def curve(rows: Sequence[Row], size: str, group: str, instructed: bool = False, shuffled: bool = False) -> Curve | None:
    """The curve of these rows; None if there are none."""
    form = (size, group, instructed, shuffled)
    chosen = [row for row in rows if (row.size, row.group, row.instructed, row.shuffled) == form]
    shots = tuple(sorted({row.shots for row in chosen}))
    if not shots:
        return None
    means, errors = [], []
    for k in shots:
        at_k = [row for row in chosen if row.shots == k]
        shares = [row.right / row.items for row in at_k]
        mean = sum(shares) / len(shares)
        if len(shares) > 1:
            variance = sum((share - mean) ** 2 for share in shares) / (len(shares) - 1) / len(shares)
        else:
            variance = mean * (1 - mean) / at_k[0].items
        means.append(mean)
        errors.append(math.sqrt(variance))
    return Curve(shots, tuple(means), tuple(errors), len({row.seed for row in chosen}))


def table(rows: Sequence[Row]) -> str:
    """Accuracies in percent against K, a line for each size, group and form of prompt."""
    shots = sorted({row.shots for row in rows})
    lines = [["size", "rules", "prompt", "seeds", *(f"K={k}" for k in shots)]]
    for size in dict.fromkeys(row.size for row in rows):
        for group in GROUPS:
            for form, (instructed, shuffled) in _FORMS.items():
                found = curve(rows, size, group.name, instructed, shuffled)
                if found:
                    at = dict(zip(found.shots, zip(found.mean, found.error, strict=True), strict=True))
                    cells = [f"{100 * at[k][0]:.0f} ± {100 * at[k][1]:.0f}" if k in at else "" for k in shots]
                    lines.append([size, group.name, form, str(found.seeds), *cells])
    return grid(lines)


_FORMS = {"examples": (False, False), "and instruction": (True, False), "of other rules": (False, True)}
