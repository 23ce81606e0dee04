"""The two kinds of errors reported to the user, each as one line on stderr and an exit code."""

from __future__ import annotations

import errno
import re


class UserError(Exception):
    """The user's input is wrong (exit code 2). Names the thing, its value, what was expected and what to do."""

    exit_code = 2


class RunError(Exception):
    """Something failed while running (exit code 1), such as a full disk, unreadable data, or a loss that is not
    finite."""

    exit_code = 1


def require_type(name: str, value: object, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raises UserError unless `value` is of one of `kinds`. `name` and `expected` describe it in the message."""
    if not isinstance(value, kinds) or isinstance(value, bool):
        text = repr(value)
        text = f"{text[:60]}..." if len(text) > 63 else text
        raise UserError(f"{name} is {' '.join(text.split())}, of type {type(value).__name__}; expected {expected}")


_WHAT_TO_DO = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EACCES: "give this user permission, or choose another",
    errno.EPERM: "give this user permission, or choose another",
    errno.EROFS: "the file system is read-only, choose another",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the limit on open files, or stop other programs on this machine",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EAGAIN: "raise the limit on processes and threads (ulimit -u), or stop other programs on this machine",
    errno.ENOMEM: "stop other programs on this machine, or raise the limit on memory (ulimit -v)",
    errno.EIO: "the disk or its network fails, see the system log",
    errno.ESTALE: "the file handle is stale, remount the network disk",
}
_JAX_SETTING = (
    re.compile(r"[Ii]nvalid value \"?(?P<value>.*?)\"? for JAX flag (?P<name>\w+)"),
    re.compile(r"invalid truth value '(?P<value>.*)' for environment '(?P<name>\w+)'"),
)


def explain(error: BaseException) -> UserError | RunError | None:
    """Converts an error of the system or of another library; None for an error that needs a traceback.

    An `OSError` without an errno does not come from the system. A failed import of this package is a defect.
    """
    why = " ".join(str(error).split())[:300]
    if isinstance(error, OSError):
        if error.errno is None:
            return None
        where = f": {error.filename}" if error.filename else ": the output" if error.errno == errno.ENOSPC else ""
        hint = _WHAT_TO_DO.get(error.errno, "")
        return RunError(f"{error.strerror or type(error).__name__}{where}{'; ' if hint else ''}{hint}")
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in why:
        what = "a device" if "RESOURCE_EXHAUSTED" in why else "this machine"
        more = f" ({why})" if why else ""
        return RunError(f"{what} is out of memory{more}; use a smaller batch or model, or stop other programs on it")
    if isinstance(error, ImportError):
        if (error.name or "").split(".")[0] == "gpt3_jax":
            return None
        return RunError(
            f"a package is missing or broken: {why}; install the tested versions: pip install -c constraints.txt -e ."
        )
    if isinstance(error, RuntimeError) and why.startswith("jaxlib") and "version" in why:
        return RunError(f"{why}; install the tested versions: pip install -c constraints.txt -e .")
    for pattern in _JAX_SETTING:
        if isinstance(error, ValueError) and (found := pattern.search(why)):
            name = found["name"].upper()
            return UserError(f"{name} is {found['value']!r}, which JAX does not know; set another value, or unset it")
    return None
