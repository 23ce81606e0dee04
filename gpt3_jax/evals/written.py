"""A folder of results: one command at a time, each file appears when it is whole, a failing disk ends in one line."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt3_jax.cluster import signals
from gpt3_jax.cluster.agreement import from_lead, is_lead
from gpt3_jax.cluster.log import log
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.evals.results import RESULTS, to_json


def make_folder(out: str | os.PathLike[str]) -> Path:
    """The folder, made if it is not there. Raises RunError."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from None
    if not os.access(folder, os.W_OK):
        raise RunError(f"the folder {folder} cannot be written; choose another --out")
    return folder


@contextlib.contextmanager
def alone_in(out: str | os.PathLike[str] | None) -> Iterator[Path | None]:
    """Makes the folder and keeps other commands out of it: to be entered before any file in it is written. Without
    `out`, does nothing.

    In a multi-process run the lead process holds the lock, which is on the folder itself. It ends with the process.

    Raises:
        UserError: another command writes into the folder.
        RunError: it cannot be made or written.
    """
    if out is None:
        yield None
        return
    folder = make_folder(out)
    with contextlib.ExitStack() as held:
        # The lead process decides for all: the others must not wait for one that has stopped.
        state, _, why = from_lead(_lock(folder, held) if is_lead() else "").partition(" ")
        if state == "busy":
            raise UserError(f"{folder} is in use by another command; wait, or choose another --out")
        if state == "failed":  # as on some network disks
            log.warning(f"{folder} cannot be locked ({why}): let no second command write there")
        yield folder


def _lock(folder: Path, held: contextlib.ExitStack) -> str:
    """Locks the folder until `held` is closed. Returns "ours", "busy", or "failed" and why."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        held.callback(os.close, opened)
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "busy"
    except OSError as error:
        return f"failed {error.strerror or error}"
    return "ours"


@contextlib.contextmanager
def said_when_interrupted(kept: str | None, out: str | os.PathLike[str] | None) -> Iterator[None]:
    """Says after Ctrl-C what is not lost: `kept`, or without `out` nothing. None: `KeptAnswers` says what is kept."""
    try:
        yield
    except BaseException as error:
        # Ctrl-C inside an import or a callback can become another exception.
        if signals.exit_code() is None and not isinstance(error, KeyboardInterrupt):
            raise
        if out is None:
            log.info("nothing is kept without --out; with it, the same command goes on where it was interrupted")
        elif kept:
            log.info(f"{out} keeps {kept}; the same command goes on from there")
        raise


def require_own(folder: Path, kind: str) -> None:
    """Refuses a folder that holds the results of another command, which would be overwritten.

    Args:
        kind: the ``format`` of this command's results.

    Raises:
        UserError: the folder's results are of another format.
    """
    try:
        found = json.loads((folder / RESULTS).read_text(encoding="utf-8")).get("format")
    except (OSError, ValueError, AttributeError):
        return  # none, or none of ours
    if found != kind:
        raise UserError(f"{folder} holds results of another command ({found}); choose another --out")


@contextlib.contextmanager
def records(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Takes records and writes them to `path`, JSON lines, which appears when all are there. The lead process writes;
    without a path, nothing is written. Raises RunError."""
    if path is None or not is_lead():
        yield lambda _: None
        return
    with _writing(path):
        file = open(_partial(path), "w", encoding="utf-8", errors="surrogatepass")  # noqa: SIM115

    def write(record: dict[str, Any]) -> None:
        with _writing(path):
            print(to_json(record), file=file)

    with contextlib.closing(file):
        try:
            yield write
            with _writing(path):
                file.close()
                _partial(path).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                _partial(path).unlink()
            raise


def write(path: Path, text: str) -> None:
    """Writes a file. Raises RunError."""
    try:
        with _writing(path):
            _partial(path).write_text(text, encoding="utf-8", errors="surrogatepass")
            _partial(path).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            _partial(path).unlink()
        raise
    log.info(f"wrote {path}")


def remove(path: Path) -> None:
    """Removes a file that would not belong to the new results, if it is there. Raises RunError."""
    with _writing(path):
        path.unlink(missing_ok=True)


def move(folder: Path, to: Path, names: Iterable[str]) -> None:
    """Moves the files that are there into a new folder. Raises RunError."""
    with _writing(to):
        to.mkdir()
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                (folder / name).replace(to / name)
    log.info(f"moved the earlier results to {to}")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes one object. Raises RunError."""
    write(path, f"{to_json(data, indent=1)}\n")


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes an object a line. Raises RunError."""
    with records(path) as on_record:
        for each in lines:
            on_record(dict(each))
    log.info(f"wrote {path}")


def _partial(path: Path) -> Path:
    return path.with_suffix(".partial")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise RunError(f"cannot write {path}: {why}; free some space, or choose another --out") from None
