"""Processes that work on a sequence of jobs, whose results come in the order of the jobs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from gpt3_jax.errors import RunError

Key = TypeVar("Key")
Job = TypeVar("Job")
Result = TypeVar("Result")


@contextlib.contextmanager
def pool(workers: int, prepare: Callable[..., None], arguments: tuple[Any, ...]) -> Iterator[Executor | None]:
    """Processes, each of which first calls `prepare` with `arguments`; None for one worker: this process."""
    if workers == 1:
        yield None
        return
    # Not fork: this process may have threads (JAX's, the progress bar's), whose locks a fork would copy.
    context = multiprocessing.get_context("spawn")
    processes = ProcessPoolExecutor(workers, context, _start, (prepare, arguments))
    try:
        yield processes
    finally:
        processes.shutdown(wait=True, cancel_futures=True)


def in_order(
    jobs: Iterable[tuple[Key, Job]], processes: Executor | None, work: Callable[[Job], Result], window: int, hint: str
) -> Iterator[tuple[Key, Result]]:
    """Yields the key and the result of each job, with at most `window` of them in progress.

    Args:
        work: for processes, a function of a module.
        hint: for the error when a process was killed: what to do.
    """
    if processes is None:
        for key, job in jobs:
            yield key, work(job)
        return
    pending: deque[tuple[Key, Future[Result]]] = deque()
    try:
        for key, job in jobs:
            pending.append((key, processes.submit(work, job)))
            if len(pending) >= window:
                done, future = pending.popleft()
                yield done, future.result()
        while pending:
            done, future = pending.popleft()
            yield done, future.result()
    except BrokenProcessPool:
        raise RunError(hint) from None


def _start(prepare: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    follow_parent()
    prepare(*arguments)


def follow_parent() -> None:
    """In a worker: leaves Ctrl-C to the parent, and ends when it is gone."""
    # Ctrl-C reaches every process of a terminal. The parent ends the work of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """Ends this worker when its parent process is gone, which the pool's own queues would not notice."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
