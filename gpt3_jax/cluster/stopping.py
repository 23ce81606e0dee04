"""Stopping when asked: SIGTERM (pre-emption, ``scancel``, ``kubectl delete``) and Ctrl-C.

The loop asks once per step; all processes get the answer True at the same step, and save there.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

# The service stops at the call after the highest that any process has made. A resumed run's own step numbers would
# begin far above what it chooses when the signal comes before the first call, and it would never be reached.
_CALLS = itertools.count(1)
_NOTICE = b"\ninterrupted: stopping after a step, with a checkpoint; press Ctrl-C again to leave at once\n"


class StopSignal:
    """Context manager inside which SIGTERM and Ctrl-C ask the loop to stop, and a second Ctrl-C ends it at once.

    With `jax.distributed` started, SIGTERM belongs to JAX's pre-emption service: it tells all processes, and they
    agree on the next step that none has passed. A handler of ours would silence it, so none is set, and the first
    Ctrl-C in any process is handed to the service as a SIGTERM. Without it, the flag is this process's own.

    Signals reach only the main thread of Python: entered from another thread, nothing is installed, and SIGTERM and
    Ctrl-C do what they did before.
    """

    def __init__(self) -> None:
        self.reason = ""
        """What asked for the stop, in words for the person; empty until then."""
        self._asked = False
        self._interrupted = False
        self._agreed = False
        self._service = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        self._service = jax.distributed.is_initialized()
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._on_interrupt)
            if not self._service:
                self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._on_terminate)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set from Python, and that Python therefore cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def requested(self) -> bool:
        """Whether to stop before the next step; once True, always True.

        All processes call it before every step, equally often: that is how they agree.
        """
        if not self._agreed:
            if self._service:
                self._agreed = multihost_utils.reached_preemption_sync_point(next(_CALLS))
            else:
                self._agreed = self._asked
            if self._agreed and not self.reason:
                self.reason = "SIGTERM, here or in another process"
        return self._agreed

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or "SIGTERM"
        self._asked = True

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self.reason = self.reason or "SIGINT"
        self._asked = self._interrupted = True
        os.write(2, _NOTICE)  # print() could be interrupted inside itself
        if self._service:
            os.kill(os.getpid(), signal.SIGTERM)
