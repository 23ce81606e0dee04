"""What the storage libraries (Orbax, TensorStore) raise and log, made fit for a person: one line, its true cause.

Nothing of the libraries is imported here; it is their habits that are known.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import sys
import warnings
from pathlib import Path

# What the parsers of Orbax and TensorStore raise when they meet bytes that they did not write.
UNREADABLE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, RuntimeError, EOFError
)  # fmt: skip
# What they raise when the machine is at fault, and not the checkpoint.
_MACHINE_ERRNO = (
    errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ENODEV,
    errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH,
    errno.ECONNREFUSED, errno.ECONNRESET,
)  # fmt: skip
_MACHINE_TEXT = (
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", *(os.strerror(number) for number in _MACHINE_ERRNO)
)  # fmt: skip


def one_line(error: BaseException) -> str:
    """The error in a line of bearable length: TensorStore names the file first and the cause last."""
    error = _true_cause(error)
    text = " ".join(str(error).split(" [tensorstore_spec")[0].split())
    if len(text) > 300:
        text = f"{text[:100]} ... {text[-200:]}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def machine_at_fault(error: BaseException) -> bool:
    """Whether a failure to read says nothing about the checkpoint: another would not be readable either."""
    error = _true_cause(error)
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRNO:
        return True
    return any(text in str(error) for text in _MACHINE_TEXT)


def disk_full(error: BaseException) -> bool:
    """Whether a failure to write means that there is no room, on the disk or in the user's quota."""
    error = _true_cause(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(text in str(error) for text in ("No space left", "quota exceeded", "ENOSPC"))


def _true_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:  # Orbax puts misleading errors around it
        error = error.__cause__
    return error


class _NoPages(logging.Filter):
    """Drops the tracebacks that Orbax's threads log about an error which is also raised, and said by us in one line.

    Left alone, a full disk prints some 400 lines. Raise absl's verbosity (``absl.logging.set_verbosity(1)``) to see
    them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts or logging.getLogger("absl").isEnabledFor(logging.INFO)


logging.getLogger("absl").addFilter(_NoPages())


def bury_failed_tasks() -> None:
    """Collects the asyncio tasks that Orbax leaves behind when it meets bytes that it cannot read.

    Whenever Python collects them they complain, in pages; so that is done here, once their error has been handled.
    """
    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook
    disabled, logger.disabled = logger.disabled, True
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            gc.collect()
    finally:
        logger.disabled, sys.unraisablehook = disabled, hook
