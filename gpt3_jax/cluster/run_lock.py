"""Allows one run at a time in a run folder: two would delete each other's checkpoints and mix their metrics."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from gpt3_jax.cluster.agreement import from_lead, is_lead
from gpt3_jax.cluster.log import log
from gpt3_jax.errors import RunError, UserError

_HELD = (errno.EAGAIN, errno.EACCES)
_WAIT_S, _RETRY_S = 180.0, 3.0
"""How long to wait for a lock of another machine. An NFS server keeps a dead client's lock for a lease of 90 s."""


class RunLock:
    """Context manager that holds `run_dir` in the lead process, for all processes of the run.

    The lock is the kernel's (`flock` on the file ``run.lock``), so it ends with the process, however the process ends.
    Between machines it works as far as the file system supports locks. If another machine holds the lock, `RunLock`
    waits: the lock of a node that died outlives its run for a while.

    Raises:
        UserError: a run on this machine holds the folder; names its process.
        RunError: another machine still holds it after the wait, or the folder cannot be written.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "run.lock"
        self._file: int | None = None

    def __enter__(self) -> RunLock:
        folder = self._path.parent
        deadline, waiting = time.monotonic() + _WAIT_S, False
        while True:
            # The lead process decides for all: the others must not wait for a run that does not start.
            state, _, what = from_lead(self._try() if is_lead() else "").partition(" ")
            if state == "ours":
                return self
            if state == "failed":
                raise RunError(f"cannot write into {folder}: {what}; choose another train.run_dir")
            if state == "here":
                raise UserError(
                    f"train.run_dir {folder} is in use by another run ({what}); wait for it, stop it, or choose "
                    "another train.run_dir"
                )
            if from_lead("late" if is_lead() and time.monotonic() > deadline else ""):
                raise RunError(f"train.run_dir {folder} is still in use by another run ({what}); stop it first")
            if not waiting:
                log.warning(f"{folder} is in use by another run ({what}); waiting up to {_WAIT_S:.0f} s for it to end")
                waiting = True
            time.sleep(_RETRY_S)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _try(self) -> str:
        """One attempt, in the lead process: "ours", or "here", "elsewhere" or "failed" followed by details."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            return f"failed {error.strerror}"
        host = os.uname().nodename
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                holder = ""
                with contextlib.suppress(OSError):
                    holder = os.read(file, 200).decode(errors="replace").strip()
                os.close(file)
                where = "here" if not holder or holder.endswith(f" on {host}") else "elsewhere"
                return f"{where} {holder or 'another process'}"
            log.warning(f"{self._path} cannot be locked ({error.strerror}): start no second run there")
        self._file = file
        with contextlib.suppress(OSError):  # on a full disk the lock still holds, without its holder's name
            os.ftruncate(file, 0)
            os.write(file, f"process {os.getpid()} on {host}\n".encode())
        return "ours"
