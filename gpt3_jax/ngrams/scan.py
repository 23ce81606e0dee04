"""Looks through a corpus once, with several processes, and hands over what each piece holds in the order of the
pieces."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from gpt3_jax import quantities
from gpt3_jax.data.in_order import in_order, pool
from gpt3_jax.errors import UserError
from gpt3_jax.ngrams.corpus import Corpus, Piece, Place, Reader, Size

Result = TypeVar("Result")
Collected = TypeVar("Collected", covariant=True)
_KILLED = (
    "a process that reads the corpus was killed, perhaps for lack of memory; run the same command again with fewer "
    "--workers"
)


class Collector(Protocol[Collected]):
    """What is done with a piece; it is sent to each process once."""

    def collect(self, reader: Reader, piece: Piece) -> Collected:
        """What the piece holds."""
        ...


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a scan has got."""

    done: int
    """Bytes on disk."""
    whole: int
    size: Size
    """Read by this scan."""
    seconds: float


@dataclasses.dataclass
class Took:
    """What a scan took, interrupted tries included."""

    size: Size = dataclasses.field(default_factory=Size)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of all workers together."""
    worker_bytes: int = 0
    """Most memory of a worker; of this process, if it has none."""

    def add(self, piece: Scanned[Any]) -> None:
        """Adds a piece, but not the time, which pieces share."""
        self.size += piece.size
        self.cpu_seconds += piece.cpu_seconds
        self.worker_bytes = max(self.worker_bytes, piece.peak_bytes)

    def as_data(self) -> dict[str, Any]:
        """For a file."""
        return {
            **dataclasses.asdict(self.size),
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "megabytes_per_second": round(self.size.bytes / 1e6 / max(self.seconds, 1e-9), 3),
            "megabytes_per_cpu_second": round(self.size.bytes / 1e6 / max(self.cpu_seconds, 1e-9), 3),
            "peak_bytes": peak_bytes(),
            "worker_bytes": self.worker_bytes,
        }

    def lines(self, now: bool = True) -> str:
        """For people.

        Args:
            now: False for what an earlier run read; its speed is not said.
        """
        megabytes = self.size.bytes / 1e6
        text = f"  {self.size.documents:,} documents, {megabytes:,.1f} MB of text, "
        if now:
            text += (
                f"{megabytes / max(self.seconds, 1e-9):,.1f} MB/s, {megabytes / max(self.cpu_seconds, 1e-9):,.1f} MB "
                f"for a second of one core; most memory {quantities.size(peak_bytes())}, of a worker "
                f"{quantities.size(self.worker_bytes)}\n"
            )
        else:
            text += "read by an earlier run\n"
        if self.size.left_out:
            text += f"  {self.size.left_out:,} documents that cannot be read are left out\n"
        return text


@dataclasses.dataclass(frozen=True)
class Scanned(Generic[Result]):
    """One piece."""

    file: int
    result: Result
    size: Size
    after: Place
    """Where reading goes on."""
    peak_bytes: int
    """Most memory so far of the process that read it."""
    cpu_seconds: float
    """That it took this process."""


def scan(
    corpus: Corpus,
    collector: Collector[Result],
    workers: int = 1,
    start: Place | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[Scanned[Result]]:
    """Hands each piece of the corpus, from `start` on, to the collector in one of `workers` processes.

    At most three pieces for each process are held, so memory is bounded by the longest document.

    Raises:
        UserError: a document cannot be read as configured.
        RunError: a file is damaged, or a process was killed.
    """
    if workers < 1:
        raise UserError(f"workers is {workers}; expected at least 1")
    reader = Reader(corpus.files, corpus.options, corpus.tokenizer)
    began, size, whole = time.monotonic(), Size(), corpus.size

    def here(piece: Piece) -> tuple[Result, Size, int, float]:
        return _collected(collector, reader, piece)

    with pool(workers, _prepare, (collector, reader)) as processes:
        jobs = (((*after, piece.file), piece) for after, piece in corpus.pieces(start or Place()))
        work = here if processes is None else _collect_in_worker
        for (place, done, file), (result, read, *took) in in_order(jobs, processes, work, 3 * workers, _KILLED):
            size += read
            yield Scanned(file, result, read, place, *took)
            if on_progress:
                on_progress(Progress(done, whole, size, time.monotonic() - began))


def peak_bytes() -> int:
    """Most memory that this process has had."""
    try:
        # Unlike getrusage's, which in a process that was started for another program counts the one that started it.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError, ValueError):  # not Linux
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _collected(collector: Collector[Result], reader: Reader, piece: Piece) -> tuple[Result, Size, int, float]:
    reader.size, began = Size(), time.process_time()
    result = collector.collect(reader, piece)
    return result, reader.size, peak_bytes(), time.process_time() - began


_worker: tuple[Collector[Any], Reader]


def _prepare(collector: Collector[Any], reader: Reader) -> None:
    global _worker
    _worker = collector, reader


def _collect_in_worker(piece: Piece) -> Any:
    return _collected(*_worker, piece)
