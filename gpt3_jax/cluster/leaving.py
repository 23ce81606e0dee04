"""Ends a process without leaving the other processes waiting."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from types import TracebackType
from typing import NoReturn

import jax

from gpt3_jax.cluster import signals
from gpt3_jax.errors import RunError, UserError, explain

_GRACE_S = 2.0


def leave_now(code: int, line: str = "") -> NoReturn:
    """Ends this process without waiting for the others, with `line` on stderr. May be called from any thread.

    After a failed collective, an ordinary exit hangs in the distributed client until the heartbeat times out.
    """
    if line:
        os.write(2, f"{line}\n".encode())  # not print(): the main thread may be inside it and hold its lock
    else:
        with contextlib.suppress(OSError):  # a reader that has left
            sys.stdout.flush()
            sys.stderr.flush()
    os._exit(code)


class NoneLeftWaiting:
    """In a multi-process run, a process that fails reports the reason and exits at once.

    An ordinary exit would wait for the other processes. If these are in a collective with it, they end when a
    connection closes, when the coordinator ends, or at the latest when its heartbeat is missing
    (`start.HEARTBEAT_TIMEOUT_S`). Each process reports its own reason, because only one of them may have it.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or error is None or not jax.distributed.is_initialized():
            return
        code, index = 1, _process_index()
        process = "a process" if index is None else f"process {index}"
        error = explain(error) or error if isinstance(error, Exception) else error
        if isinstance(error, KeyboardInterrupt) or signals.exit_code() is not None:
            code = signals.exit_code() or signals.EXIT_CODES[signal.SIGINT]
            print(f"gpt3-jax: {process} interrupted", file=sys.stderr)
        elif isinstance(error, (UserError, RunError)):
            print(f"gpt3-jax: error in {process}: {error}", file=sys.stderr)
            code = error.exit_code
        else:
            sys.excepthook(kind, error, trace)
        if not index:
            time.sleep(_GRACE_S)  # the coordinator: the others need it to report their own errors
        leave_now(code)


def _process_index() -> int | None:
    """None where JAX cannot start this process's devices, without which it does not know the index."""
    try:
        return jax.process_index()
    except (RuntimeError, AssertionError):
        return None
