"""Handles Ctrl-C and SIGTERM from the start of a command to its end.

Python runs a signal handler in the main thread, between two bytecode instructions. This is too late if the main thread
is inside a compilation, a collective or a read from an unresponsive file server. An exception raised by the handler is
also lost if a library calls back into Python and drops it ("Exception ignored in ..."). So a thread here reads the
signals too. After the first signal, the command has a short time to end in good order before the thread ends it. A
second Ctrl-C ends it at once.

Inside `stopping.StopSignal`, that class handles the first signal. This file imports only the standard library.
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
"""The exit code that a shell reports for a program ended by the signal."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised as a KeyboardInterrupt so that code which cleans up after Ctrl-C also cleans up after SIGTERM."""


class _State:
    installed = False
    asked: signal.Signals | None = None
    """The first signal that ends the command; None inside `StopSignal`, and before any signal."""
    unwinds = False
    """Whether the main thread catches an interrupt, so that it can clean up."""
    raised = False
    interrupts = 0
    graceful = False
    patience = False
    """Whether `GRACEFUL_S` is running."""
    service: Callable[[int], None] | None = None
    """The handler of JAX's preemption service, if `keep_sigterm` replaced it."""


_state = _State()


def install() -> None:
    """Installs the handlers of this process. A command calls it first, once, in the main thread.

    An ignored SIGINT stays ignored: shells start background jobs that way.
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
        # A library dropped the exception. The thread still ends the command and reports it.
        if not issubclass(what.exc_type, KeyboardInterrupt):
            before(what)

    sys.unraisablehook = unraisable
    for number in EXIT_CODES:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)


def unwind() -> None:
    """From here on, a signal raises KeyboardInterrupt in the main thread, which the caller catches. Before, a signal
    ends the process at once."""
    _state.unwinds = True


def exit_code() -> int | None:
    """The exit code if a signal outside `StopSignal` ended the command, whatever else failed afterwards; else None."""
    return None if _state.asked is None else EXIT_CODES[_state.asked]


def graceful(begins: bool) -> None:
    """For `StopSignal`: from here on the first signal does not end the command (True), or does so again (False)."""
    _state.graceful = begins


def keep_sigterm() -> None:
    """Takes SIGTERM back from JAX's preemption service. Call after ``jax.distributed.initialize()``.

    The service's handler only records the signal, and `multihost_utils.reached_preemption_sync_point` reports it later.
    Until the loop asks, SIGTERM would have no effect. JAX has no other way to notify the service, so its handler is
    kept for `tell_service`. Does nothing if `install` was not called; SIGTERM then stays with the service.
    """
    if not _state.installed:
        return
    import ctypes

    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    # Python does not see a handler that was set from C: signal.signal() neither returns it nor restores it.
    theirs = libc.signal(signal.SIGTERM, None)
    signal.signal(signal.SIGTERM, _on_signal)
    pythons = libc.signal(signal.SIGTERM, None)
    signal.signal(signal.SIGTERM, _on_signal)
    if theirs is not None and theirs not in (int(signal.SIG_IGN), pythons):
        _state.service = ctypes.CFUNCTYPE(None, ctypes.c_int)(theirs)


def service_is_told_by_us() -> bool:
    """Whether `keep_sigterm` found a service, which is now notified of SIGTERM only by `tell_service`."""
    return _state.service is not None


def tell_service() -> None:
    """Notifies JAX's preemption service of a SIGTERM."""
    if _state.service is not None:
        _state.service(int(signal.SIGTERM))


def _on_signal(number: int, frame: FrameType | None) -> None:
    """Runs in the main thread, when it next executes Python."""
    _ask(signal.Signals(number))
    if not _state.unwinds or _importing(frame):
        # An extension module would turn an exception raised now into an ImportError, or print it. Nothing needs
        # cleaning up.
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
    """Runs in a thread of its own, at once."""
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
