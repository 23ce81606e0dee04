"""How long a command takes from its start to the first step, by phase. `gpt3-jax bench startup` reads what is said."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from gpt3_jax.cluster.log import log

PHASES = ("configuration", "imports", "devices", "data", "state", "tracing", "lowering", "compiling", "hooks", "step")
"""In the order in which they end. configuration: the interpreter and reading YAML; imports: JAX and the modules of
training; devices: their start and all checks; data: opening it, and making text where `data.builtin` does; state:
creating it or restoring it; hooks: what they prepare, such as the program of the held-out evaluation; step: the first
one."""


class _Marks:
    """The marks of this process's one start-up; empty until `begin`, so that a call from Python has none."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last: float | None = None


_marks = _Marks()


def begin() -> None:
    """Starts counting, from the start of the process where the system tells it (Linux)."""
    _marks.seconds, _marks.last = {}, _process_start()


def mark(phase: str) -> None:
    """Counts the time since the last mark as of this phase, one of `PHASES`. Does nothing before `begin` and after
    `say`."""
    if _marks.last is None:
        return
    assert phase in PHASES, phase
    now = time.monotonic()
    _marks.seconds[phase] = _marks.seconds.get(phase, 0.0) + now - _marks.last
    _marks.last = now


def say() -> None:
    """Logs the phases, once: the first step is done."""
    if _marks.last is None:
        return
    _marks.last = None
    phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in _marks.seconds.items())
    log.info(f"first step after {sum(_marks.seconds.values()):.2f} s: {phases}")


def read(text: str) -> dict[str, float] | None:
    """Seconds by phase in what a process logged; None if it has not said them."""
    line = re.search(r"first step after [\d.]+ s: (.*)", text)
    if line is None:
        return None
    return {phase: float(seconds) for phase, seconds in re.findall(r"(\w+) ([\d.]+)", line[1])}


def _process_start() -> float:
    """On the clock of `time.monotonic`. Now, where the system does not tell."""
    now = time.monotonic()
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, ValueError, IndexError):
        return now
