"""Writes the files of a report so that none is ever there in part."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt3_jax.cluster import signals
from gpt3_jax.cluster.log import log
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.evals.results import to_json


def make_folder(out: str | os.PathLike[str]) -> Path:
    """The folder, made where it is not there. Raises RunError."""
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
    """Makes the folder of a report and keeps other commands out of it while it is computed. The lock is on the folder
    itself, and ends with the process. Without `out`, does nothing.

    Raises:
        UserError: another command writes into the folder.
        RunError: it cannot be made or written.
    """
    if out is None:
        yield None
        return
    folder = make_folder(out)
    opened = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise UserError(f"{folder} is in use by another command; wait, or choose another --out") from None
    except OSError as error:
        log.warning(f"{folder} cannot be locked ({error.strerror}): let no second command write there")
    try:
        yield folder
    finally:
        os.close(opened)


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


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes one object. Raises RunError."""
    _write(path, [to_json(data, indent=1)])


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes an object a line. Raises RunError."""
    _write(path, map(to_json, records))


def _write(path: Path, lines: Iterable[str]) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.writelines(f"{line}\n" for line in lines)
        partial.replace(path)
    except OSError as error:
        why = error.strerror or error
        raise RunError(f"cannot write {path}: {why}; free some space, or choose another --out") from None
    finally:
        partial.unlink(missing_ok=True)
    log.info(f"wrote {path}")
