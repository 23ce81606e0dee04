"""Ctrl-C and SIGTERM, from the first moment of a command to its last.

Python runs a signal's handler in the main thread, between two of its own instructions. That is too late where the main
thread is inside a compilation, a collective or a file server's silence; and what the handler raises is lost where a
library calls Python back and drops the error ("Exception ignored in ..."). So a thread of ours reads the signals too:
after the first, the command has a short while to end in good order, and is then ended; a second Ctrl-C ends it at once.

Inside `stopping.StopSignal` the first signal is that class's to answer. Only the standard library is imported here.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

GRACE_S = 3.0
"""How long a command may take to end after the first signal: to remove temporary files, not to finish its work."""
GRACEFUL_S = 1800.0
"""How long training may take to end after the first signal inside `StopSignal`: for its step and its checkpoint. A step
that waits for a dead file server, or for a process that hangs, would never end."""
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""What a shell reports for a program that was ended by the signal."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised as Ctrl-C is: what cleans up after the one cleans up after the other."""


class _State:
    installed = False
    asked: signal.Signals | None = None
    """The first signal that is to end the command; None inside `StopSignal`, and before any."""
    unwinds = False
    """Whether what is raised in the main thread is caught, so that it can clean up."""
    raised = False
    interrupts = 0
    graceful = False
    patience = False
    """Whether `GRACEFUL_S` is running."""
    service: Callable[[int], None] | None = None
    """The handler of JAX's pre-emption service, where `keep_sigterm` took its place."""


_state = _State()


def install() -> None:
    """Sets the handlers of this process. The first thing that a command does; in the main thread, once.

    SIGINT that is ignored stays so: a shell starts what runs in the background like that.
    """
    if _state.installed or threading.current_thread() is not threading.main_thread():
        return
    _state.installed = True
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()
    before = sys.unraisablehook

    def unraisable(what: Any) -> None:
        # Dropped by a library: the thread ends the command all the same, and says so.
        if not issubclass(what.exc_type, KeyboardInterrupt):
            before(what)

    sys.unraisablehook = unraisable
    for number in EXIT_CODES:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)


def unwind() -> None:
    """From here on the main thread is interrupted by a KeyboardInterrupt, which the caller catches; until then a signal
    ends the process at once."""
    _state.unwinds = True


def exit_code() -> int | None:
    """The code to end with, whatever else went wrong since: a signal outside `StopSignal` asked for the end."""
    return None if _state.asked is None else EXIT_CODES[_state.asked]


def graceful(begins: bool) -> None:
    """For `StopSignal`: from here on the first signal ends nothing (True), or does again (False)."""
    _state.graceful = begins


def keep_sigterm() -> None:
    """Takes SIGTERM back from JAX's pre-emption service. Call after ``jax.distributed.initialize()``.

    The service's handler only notes that the signal came, which `multihost_utils.reached_preemption_sync_point` tells
    later: until the loop asks, SIGTERM would do nothing. JAX has no other way of telling the service, so its handler is
    kept, for `tell_service`. Does nothing where `install` was not called: then SIGTERM is the service's.
    """
    if not _state.installed:
        return
    import ctypes

    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    # For Python a handler that was set from C does not exist: signal.signal() neither returns it nor sets it again.
    theirs = libc.signal(signal.SIGTERM, None)
    signal.signal(signal.SIGTERM, _on_signal)
    pythons = libc.signal(signal.SIGTERM, None)
    signal.signal(signal.SIGTERM, _on_signal)
    if theirs is not None and theirs not in (int(signal.SIG_IGN), pythons):
        _state.service = ctypes.CFUNCTYPE(None, ctypes.c_int)(theirs)


def service_is_told_by_us() -> bool:
    """Whether `keep_sigterm` found a service, which now hears of SIGTERM by `tell_service` only."""
    return _state.service is not None


def tell_service() -> None:
    """Tells JAX's pre-emption service of a SIGTERM."""
    if _state.service is not None:
        _state.service(int(signal.SIGTERM))


def _on_signal(number: int, frame: FrameType | None) -> None:
    """In the main thread, when it next runs Python."""
    _ask(signal.Signals(number))
    if not _state.unwinds or _importing(frame):
        # An extension module makes an ImportError of what is raised now, or prints it; there is nothing to clean up.
        _leave(EXIT_CODES[signal.Signals(number)])
    if _state.raised:
        return
    _state.raised = True
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _watch(reader: int) -> None:
    while True:
        for number in os.read(reader, 64):
            if number in EXIT_CODES:
                _arrived(signal.Signals(number))


def _arrived(number: signal.Signals) -> None:
    """In a thread of its own, at once."""
    _state.interrupts += number == signal.SIGINT
    if number == signal.SIGINT and _state.interrupts > 1:
        _leave(EXIT_CODES[number])
    if not _state.graceful:
        _ask(number)
    elif not _state.patience:
        _state.patience = True
        _end_after(GRACEFUL_S, EXIT_CODES[number])


def _ask(number: signal.Signals) -> None:
    if _state.asked is not None:
        return
    _state.asked = number
    _end_after(GRACE_S, EXIT_CODES[number])


def _end_after(seconds: float, code: int) -> None:
    timer = threading.Timer(seconds, _leave, (code,))
    timer.daemon = True
    timer.start()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _leave(code: int) -> NoReturn:
    os.write(2, b"\ngpt3-jax: interrupted\n" if code == EXIT_CODES[signal.SIGINT] else b"\ngpt3-jax: terminated\n")
    os._exit(code)
