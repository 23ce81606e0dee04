"""What a run says while it goes: a progress line for the person, JSON lines and TensorBoard events for programs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from gpt3_jax.errors import RunError

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """``RUN_DIR/metrics.jsonl`` and, if wanted, TensorBoard events beside it. For the lead process.

    A resumed run drops the lines of what it will compute again, so that each batch stands there once.
    """

    def __init__(self, run_dir: Path, tokens: int, tensorboard: bool) -> None:
        """`tokens` is where training begins or resumes."""
        path = run_dir / METRICS_FILE
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            _keep_until(path, tokens)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}; free space or choose another train.run_dir") from None
        self._events: Any = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(run_dir / "tensorboard"), purge_step=tokens + 1 if tokens else None)

    def write(self, kind: str, tokens: int, values: dict[str, Any]) -> None:
        """One line: ``{"kind": "train", "tokens": ..., ...}``; numbers also go to TensorBoard, by tokens."""
        try:
            self._file.write(json.dumps({"kind": kind, "tokens": tokens, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunError(f"cannot write {self._file.name}: {error.strerror}; free space and resume") from None
        if self._events is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._events.add_scalar(f"{kind}/{name}", value, tokens)

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def _keep_until(path: Path, tokens: int) -> None:
    """Drops lines past `tokens`, and a last line that a killed process left unfinished."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            keep = line.endswith("\n") and json.loads(line)["tokens"] <= tokens
        except (ValueError, KeyError, TypeError):
            keep = False
        if keep:
            kept.append(line)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


class Progress:
    """One line that is kept up to date on a terminal; elsewhere a line at most every few seconds."""

    INTERVAL_S = 10.0

    def __init__(self, say: Callable[[str], None], quiet: bool = False) -> None:
        self._say = say
        self._quiet = quiet
        console = Console(stderr=True)
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal and not quiet else None
        self._last = 0.0

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, line: str, final: bool = False) -> None:
        """The state of the run, in one line."""
        if self._quiet:
            return
        if self._live and not final:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif final or time.monotonic() - self._last >= self.INTERVAL_S:
            self._last = time.monotonic()
            self._say(line)


def human(number: float) -> str:
    """1234567 as 1.23M."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """3723 as 1h02m."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"
