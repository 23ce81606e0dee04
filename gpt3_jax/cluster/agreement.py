"""Agreement between the processes of a run. All processes make the same calls in the same order.

JAX's public collectives for this wait forever. So each wait here has a deadline, kept by a thread: a process that waits
longer reports what it waited for and exits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gpt3_jax.cluster.leaving import leave_now
from gpt3_jax.errors import RunError, UserError, explain

WAIT_S = 1800.0
"""How long a process waits for the others. Must exceed what one process may do alone meanwhile: read its part of a
checkpoint, compare data with its checksums, count the bytes of held-out text."""

_SHOWN = 12
"""Maximum number of differences listed. Two versions of the code can differ in hundreds."""


def is_lead() -> bool:
    """Whether this is the lead process, which alone logs, writes records and renames files."""
    return jax.process_index() == 0


@contextlib.contextmanager
def deadline(what: str, seconds: float | None = None) -> Iterator[None]:
    """Limits a wait for the other processes. If the block takes longer than `seconds` (default `WAIT_S`), this process
    exits with code 1 and the line "waited … for the other processes to `what`". With one process it does nothing."""
    if jax.process_count() == 1:
        yield
        return
    limit = WAIT_S if seconds is None else seconds
    line = (
        f"gpt3-jax: error in process {jax.process_index()}: waited {limit:g} s for the other processes to {what}; one "
        "of them has stopped, or is doing something else: its own output says what"
    )
    timer = threading.Timer(limit, leave_now, (1, line))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def from_lead(text: str, what: str = "agree with process 0", seconds: float | None = None) -> str:
    """Returns the lead process's `text` in every process. All processes call it; the others' `text` is ignored."""
    if jax.process_count() == 1:
        return text
    data = np.frombuffer(text.encode(), np.uint8)
    with deadline(what, seconds):
        size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
        mine = data if is_lead() else np.zeros(size, np.uint8)
        return bytes(np.asarray(multihost_utils.broadcast_one_to_all(mine), np.uint8)).decode()


def everywhere(ok: bool, what: str = "agree", seconds: float | None = None) -> bool:
    """Whether `ok` holds in every process. All processes call it."""
    if jax.process_count() == 1:
        return ok
    with deadline(what, seconds):
        return bool(np.all(multihost_utils.process_allgather(np.int32(ok))))


def to_host(arrays: Any) -> Any:
    """A tree of global arrays as NumPy arrays, whole in every process. All processes call it."""
    if jax.process_count() == 1:
        return jax.device_get(arrays)
    return multihost_utils.process_allgather(arrays, tiled=True)


def gather(text: str, what: str = "send their values", seconds: float | None = None) -> list[str]:
    """Every process's `text`, by process index, in every process. All processes call it."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    with deadline(what, seconds):
        sizes = np.asarray(multihost_utils.process_allgather(np.int32(data.size))).ravel().tolist()
        # Rounded up to a power of two, so that few programs are compiled for the many possible lengths.
        room = np.zeros(max(256, 1 << (max(sizes) - 1).bit_length()), np.uint8)
        room[: data.size] = data
        rows = np.asarray(multihost_utils.process_allgather(room), np.uint8)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """Wraps work that each process does for itself and that all must finish before any goes on.

    Raises:
        UserError, RunError: what the block raised in this process. Processes in which it succeeded raise the error of
            one that failed, with its index and message.
    """
    failure: UserError | RunError | None = None
    unknown: Exception | None = None
    try:
        yield
    except (UserError, RunError) as error:
        failure = error
    except (OSError, MemoryError, ImportError, ValueError) as error:
        failure, unknown = explain(error) or RunError(type(error).__name__), error
    if jax.process_count() == 1:
        if failure is not None:
            raise unknown or failure
        return
    said = "" if failure is None else f"{failure.exit_code} {failure}"
    told = gather(said, f"be done with {what}")
    if failure is not None:
        raise unknown or failure
    for process, text in enumerate(told):
        if text:
            code, _, line = text.partition(" ")
            kind = UserError if int(code) == UserError.exit_code else RunError
            raise kind(f"process {process} failed at {what}: {line}")


def require_same(
    facts: Mapping[str, str], what: str, shown: Mapping[str, str] | None = None, seconds: float | None = None
) -> None:
    """Compares `facts` between all processes.

    Args:
        facts: values by name, compared as they are.
        what: what the facts describe, for the messages.
        shown: what the message shows for some facts instead of the compared value.
        seconds: how long to wait for the other processes (default `WAIT_S`).

    Raises:
        UserError: facts differ. Raised in all processes, with the values of each such fact and the processes that have
            them.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps({name: [value, (shown or {}).get(name, value)] for name, value in sorted(facts.items())})
    digest = np.frombuffer(hashlib.sha256(json.dumps(sorted(facts.items())).encode()).digest(), np.uint8)
    with deadline(f"compare {what}", seconds):
        digests = np.asarray(multihost_utils.process_allgather(digest))
    if (digests == digests[0]).all():
        return
    everyone = [json.loads(told) for told in gather(text, f"compare {what}", seconds)]
    listed = differences(everyone)
    more = f"; and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    raise UserError(
        f"the processes differ in {what}: {'; '.join(listed[:_SHOWN])}{more}; start all of them with the same "
        "configuration, code, versions and data"
    )


def differences(everyone: Sequence[Mapping[str, Sequence[str]]]) -> list[str]:
    """``name: VALUE in process 0, VALUE in processes 1, 2`` for each fact that differs between processes.

    Args:
        everyone: for each process, facts by name as (compared value, shown value).
    """
    lines = []
    for name in sorted({name for facts in everyone for name in facts}):
        values: dict[str, list[int]] = {}
        shown: dict[str, str] = {}
        for process, facts in enumerate(everyone):
            value, show = facts.get(name, ("", "nothing"))
            values.setdefault(value, []).append(process)
            shown.setdefault(value, show)
        if len(values) > 1:
            parts = [f"{_short(shown[value])} in {_processes(numbers)}" for value, numbers in values.items()]
            lines.append(f"{name}: {', '.join(parts)}")
    return lines


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:100]}...{text[-97:]}"


def _processes(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"process {numbers[0]}"
    listed = ", ".join(map(str, numbers[:8]))
    return f"processes {listed}{f' and {len(numbers) - 8} more' if len(numbers) > 8 else ''}"
