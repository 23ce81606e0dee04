"""Reduces errors and logs of the storage libraries (Orbax, TensorStore) to one line with the true cause.

This file imports neither library; it knows their error types and messages.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

# Raised by the parsers of Orbax and TensorStore for bytes that they did not write.
UNREADABLE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, RuntimeError, EOFError
)  # fmt: skip
# Raised when the machine is at fault, not the checkpoint.
_MACHINE_ERRNO = (
    errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ENODEV,
    errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH,
    errno.ECONNREFUSED, errno.ECONNRESET,
)  # fmt: skip
_MACHINE_TEXT = (
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", *(os.strerror(number) for number in _MACHINE_ERRNO)
)  # fmt: skip


def one_line(error: BaseException) -> str:
    """The error in one line of limited length. TensorStore names the file first and the cause last."""
    error = _true_cause(error)
    text = " ".join(str(error).split(" [tensorstore_spec")[0].split())
    if len(text) > 300:
        text = f"{text[:100]} ... {text[-200:]}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def machine_at_fault(error: BaseException) -> bool:
    """Whether a read failed for a reason unrelated to the checkpoint, so that others would fail too."""
    error = _true_cause(error)
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRNO:
        return True
    return any(text in str(error) for text in _MACHINE_TEXT)


def disk_full(error: BaseException) -> bool:
    """Whether a write failed because the disk or the user's quota is full."""
    error = _true_cause(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(text in str(error) for text in ("No space left", "quota exceeded", "ENOSPC"))


def _true_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:  # Orbax wraps it in misleading errors
        error = error.__cause__
    return error


class _NoPages(logging.Filter):
    """Drops the tracebacks that Orbax's threads log for an error that is also raised and reported in one line.

    Without this filter, a full disk prints some 400 lines. Raise absl's verbosity (``absl.logging.set_verbosity(1)``)
    to see them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts or logging.getLogger("absl").isEnabledFor(logging.INFO)


logging.getLogger("absl").addFilter(_NoPages())


def _ignore_late_reads(unraisable: sys.UnraisableHookArgs) -> None:
    """Drops the traceback of each read that ends after the first failed read.

    Orbax closes its event loop at the first error. TensorStore's threads then cannot deliver the other errors, and
    Python prints each of them whenever it occurs.
    """
    late = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"
    if not late or unraisable.object is not None:
        _unraisable(unraisable)


_unraisable, sys.unraisablehook = sys.unraisablehook, _ignore_late_reads


@contextlib.contextmanager
def no_asyncio_log() -> Iterator[None]:
    """Stops asyncio from logging the errors of tasks that Orbax abandons. One of these errors is raised anyway."""
    logger = logging.getLogger("asyncio")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


def bury_failed_tasks() -> None:
    """Collects the asyncio tasks that Orbax leaves behind when it meets bytes that it cannot read.

    Python prints pages of warnings when it collects them, so this is done here, once their error has been handled.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with no_asyncio_log(), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            gc.collect()
    finally:
        sys.unraisablehook = hook
