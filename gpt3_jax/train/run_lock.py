"""One run at a time in a run folder: two would delete each other's checkpoints and mix their metrics."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from gpt3_jax.errors import RunError, UserError
from gpt3_jax.parallel.distributed import from_lead, is_lead

_HELD = (errno.EAGAIN, errno.EACCES)


class RunLock:
    """Context manager that holds `run_dir` for the lead process, and with it for all processes of the run.

    The lock is the kernel's (`flock` on the file ``run.lock``), so it ends with the process, however that ends. Where
    the file system has no locks, a line says so and the run goes on.

    Raises:
        UserError: another run holds the folder; names its process.
        RunError: the folder cannot be written.
    """

    def __init__(self, run_dir: Path, say: Callable[[str], None]) -> None:
        self._path, self._say = run_dir / "run.lock", say
        self._file: int | None = None

    def __enter__(self) -> RunLock:
        refused, failed = "", ""
        if is_lead():
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.ftruncate(self._file, 0)
                    os.write(self._file, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
                except OSError as error:
                    if error.errno in _HELD:
                        refused = os.read(self._file, 200).decode(errors="replace").strip() or "another process"
                    elif error.errno == errno.ENOSPC:
                        pass  # locked, though nobody will read by whom
                    else:
                        self._say(f"{self._path} cannot be locked ({error.strerror}): start no second run there")
            except OSError as error:
                failed = str(error.strerror)
        # The lead speaks for all: the others must not wait for a run that does not begin.
        if refused := from_lead(refused):
            self._release()
            raise UserError(
                f"train.run_dir {self._path.parent} is in use by another run ({refused}); wait for it, stop it, or "
                "choose another train.run_dir"
            )
        if failed := from_lead(failed):
            raise RunError(f"cannot write into {self._path.parent}: {failed}; choose another train.run_dir")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
