"""Measures the start of training: from the command to its first step, in processes of their own, by phase.

The first start compiles and fills a compilation cache of its own; the others find the programs in it. Files of the
machine's disk cache (Python's and JAX's own) are whatever they are: a start right after installation reads them all.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gpt3_jax.bench.timing import Spread
from gpt3_jax.cluster import start_up
from gpt3_jax.config import Config
from gpt3_jax.errors import RunError
from gpt3_jax.parallel.mesh import make_mesh
from gpt3_jax.train.step import unroll

_LIMIT_S = 1800.0


@dataclasses.dataclass(frozen=True)
class StartUpTimes:
    """Seconds of each phase (`cluster.start_up.PHASES`), and of all of them."""

    cold: dict[str, Spread]
    """With an empty compilation cache."""
    warm: dict[str, Spread]
    """With a compilation cache that has the run's programs."""
    help: Spread
    """Of ``gpt3-jax train --help``, from start to end."""
    repeat: int


def measure(config: Config, arguments: Sequence[str], folder: str, repeat: int) -> StartUpTimes:
    """Starts a run `repeat` times cold and `repeat` times warm; each ends after one batch, and its folder is removed.

    Args:
        config: what `arguments` say, of `gpt3-jax train`.
        folder: where temporary files go.

    Raises:
        RunError: a run failed; with its last line.
    """
    # The program of the whole run, which a run of one batch would not repay.
    periods = unroll(config, make_mesh(config.parallel))
    one_batch = {
        "train.tokens": config.train.batch_tokens, "train.eval_sequences": 1, "train.tensorboard": "false",
        "memory.unroll": periods,
    }  # fmt: skip
    arguments = [*arguments, *(str(part) for key, value in one_batch.items() for part in (f"--{key}", value))]
    cold: list[dict[str, float]] = []
    warm: list[dict[str, float]] = []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory(dir=folder, prefix="startup-") as work:
            cold.append(_start(arguments, Path(work), "cold"))
            warm.append(_start(arguments, Path(work), "warm"))
    helps = []
    for _ in range(repeat):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "gpt3_jax", "train", "--help"], stdout=subprocess.DEVNULL, check=True)
        helps.append(time.perf_counter() - started)
    return StartUpTimes(_spreads(cold), _spreads(warm), Spread.of(helps), repeat)


def _spreads(runs: list[dict[str, float]]) -> dict[str, Spread]:
    phases = {phase: Spread.of([run[phase] for run in runs]) for phase in start_up.PHASES if phase in runs[0]}
    return phases | {"all": Spread.of([sum(run.values()) for run in runs])}


def _start(arguments: Sequence[str], work: Path, name: str) -> dict[str, float]:
    command = [sys.executable, "-m", "gpt3_jax", "train", *arguments, "--train.run_dir", str(work / name)]
    env = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_COMPILATION_CACHE"}
    env |= {"JAX_COMPILATION_CACHE_DIR": str(work / "programs")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=_LIMIT_S, errors="replace")
    except subprocess.TimeoutExpired:
        raise RunError(f"gpt3-jax train has not ended after {_LIMIT_S:.0f} s: {' '.join(command[1:])}") from None
    said = start_up.read(done.stderr)
    if done.returncode or said is None:
        last = (done.stderr.strip() or done.stdout.strip() or "it printed nothing").splitlines()[-1]
        raise RunError(f"gpt3-jax train ended with exit code {done.returncode} before its first step: {last[:300]}")
    return said
