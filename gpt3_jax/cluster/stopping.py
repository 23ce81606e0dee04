"""Stops training on SIGTERM (preemption, ``scancel``, ``kubectl delete``) and Ctrl-C.

The loop asks once per step. All processes get the answer True at the same step and save there.
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

from gpt3_jax.cluster import signals

# The service stops at the call after the highest that any process has made. If the signal comes before the first call
# of a resumed run, its own step numbers would start far above the one that the service chooses, and never reach it.
_CALLS = itertools.count(1)
_NOTICE = b"\ninterrupted: stopping after a step, with a checkpoint; press Ctrl-C again to leave at once\n"


class StopSignal:
    """Context manager in which SIGTERM and Ctrl-C ask the loop to stop, and a second Ctrl-C ends it at once.

    If `jax.distributed` was started, SIGTERM goes to JAX's preemption service. It notifies all processes, which agree
    on the next step that none has passed. The first Ctrl-C in any process is passed to the service as a SIGTERM. Unless
    `signals.keep_sigterm` has taken SIGTERM back, the service's own handler stays installed; a handler of ours would
    disable it. Without the service, the flag is local to this process.

    Signals reach only the main thread of Python. In another thread, nothing is installed, and SIGTERM and Ctrl-C keep
    their previous effect.
    """

    def __init__(self) -> None:
        self.reason = ""
        """Why the loop was asked to stop, for the user; empty until then."""
        self._asked = False
        self._interrupted = False
        self._agreed = False
        self._service = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        self._service = jax.distributed.is_initialized()
        signals.graceful(True)
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._on_interrupt)
            if not self._service or signals.service_is_told_by_us():
                self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._on_terminate)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set from Python, which Python cannot restore.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()
        signals.graceful(False)

    def requested(self) -> bool:
        """Whether to stop before the next step; once True, always True.

        All processes must call it before every step, because that is how they agree.
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
        if self._service:
            signals.tell_service()

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self.reason = self.reason or "SIGINT"
        self._asked = self._interrupted = True
        os.write(2, _NOTICE)  # not print(): the signal may have interrupted it
        if self._service:
            os.kill(os.getpid(), signal.SIGTERM)
