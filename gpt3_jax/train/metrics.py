"""Reports a run's progress: a progress line for the user, JSON lines and TensorBoard events for programs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from gpt3_jax.cluster.log import log
from gpt3_jax.errors import RunError

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """``RUN_DIR/metrics.jsonl`` and, optionally, TensorBoard events beside it. For the lead process.

    A resumed run drops the lines that it will compute again, so that each batch and evaluation appears once. Every line
    is passed to the operating system before `write` returns, so a killed process loses none.
    """

    def __init__(self, run_dir: Path, tokens: int, tensorboard: bool) -> None:
        """`tokens` is where training begins or resumes. Raises RunError if the files cannot be written."""
        self._path = run_dir / METRICS_FILE
        self._events: _Events | None = None
        with _as_run_error(self._path):
            run_dir.mkdir(parents=True, exist_ok=True)
            kept = _keep_until(self._path, tokens)
            self._file = self._path.open("a", encoding="utf-8")
            if tensorboard:
                self._events = _Events(run_dir.absolute() / "tensorboard", tokens)
        self._there = {(line["kind"], line["tokens"]) for line in kept if line["tokens"] == tokens}

    def write(self, kind: str, tokens: int, values: Mapping[str, float | None]) -> None:
        """Writes one line: ``{"kind": "train", "tokens": ..., ...}``. Numbers also go to TensorBoard, by tokens.

        Values that are not finite become null, because JSON has no NaN. A line that a finished run already holds (its
        last evaluation, when it is started again) is not written twice.

        Raises RunError if the line cannot be written, or the file was removed meanwhile.
        """
        if (kind, tokens) in self._there:
            return
        finite = {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}
        with _as_run_error(self._path):
            if os.fstat(self._file.fileno()).st_nlink == 0:  # the file was deleted: nobody would read the line
                raise RunError(f"{self._path} was removed while the run was writing it; was its folder deleted?")
            self._file.write(json.dumps({"kind": kind, "tokens": tokens, **finite}, allow_nan=False) + "\n")
            self._file.flush()
            if self._events is not None:
                self._events.write(kind, tokens, finite)

    def close(self) -> None:
        """Raises RunError if buffered lines could not be written."""
        with _as_run_error(self._path):
            try:
                self._file.close()
            finally:
                if self._events is not None:
                    self._events.close()


class _Events:
    """TensorBoard events, written synchronously in this thread.

    tensorboardX's SummaryWriter writes from its own thread. On a full disk that thread dies, and training hangs once
    the thread's queue is full.
    """

    def __init__(self, folder: Path, tokens: int) -> None:
        # Here, because tensorboardX imports torch where that is installed: a second of the start of every command that
        # writes no events.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        self._event, self._scalar = Event, scalar
        folder.mkdir(parents=True, exist_ok=True)
        # The file's name contains the time in seconds. Two starts within one second must not share a file.
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        if tokens:
            # TensorBoard hides events of earlier files from this step on.
            restart = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=tokens + 1, wall_time=time.time(), session_log=restart))
            self._writer.flush()

    def write(self, kind: str, tokens: int, values: dict[str, float | None]) -> None:
        for name, value in values.items():
            if value is not None:
                summary = self._scalar(f"{kind}/{name}", value)
                self._writer.write_event(self._event(step=tokens, wall_time=time.time(), summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@contextlib.contextmanager
def _as_run_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise RunError(
            f"cannot write {path} or the events beside it: {why}; free space, or choose another train.run_dir"
        ) from error


def _keep_until(path: Path, tokens: int) -> list[dict[str, Any]]:
    """Drops lines past `tokens`, and an unfinished last line of a killed process. Returns the lines kept."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            values = json.loads(line)
            if line.endswith("\n") and isinstance(values["kind"], str) and values["tokens"] <= tokens:
                kept.append(values)
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(values) + "\n" for values in kept), encoding="utf-8")
    os.replace(temporary, path)
    return kept


class Progress:
    """One line that is updated in place on a terminal; elsewhere, one line at most every few seconds."""

    INTERVAL_S = 10.0

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        console = Console(stderr=True)
        self._live = (
            Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal and not quiet else None
        )
        self._last = 0.0

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def status(self, line: str) -> None:
        """Shows the current activity, on a terminal only."""
        if self._live:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))

    def show(self, line: str, final: bool = False) -> None:
        """Shows the progress of the run in one line."""
        if self._quiet:
            return
        if self._live and not final:
            self.status(line)
        elif final or time.monotonic() - self._last >= self.INTERVAL_S:
            self._last = time.monotonic()
            log.info(f"{line}")


def human(number: float) -> str:
    """1234567 as 1.23M."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * limit:  # below, three digits do not round up to the limit
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
