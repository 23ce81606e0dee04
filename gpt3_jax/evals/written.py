"""Files of a result folder: each appears when it is whole, and a failing disk ends in one line."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpt3_jax.cluster.agreement import is_lead
from gpt3_jax.cluster.log import log
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.evals.results import RESULTS, to_json


def make_folder(out: str | os.PathLike[str] | None) -> Path | None:
    """The folder, made if it is not there. Raises RunError."""
    if out is None:
        return None
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from None
    return folder


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
        except BaseException:
            with contextlib.suppress(OSError):
                _partial(path).unlink()
            raise
        with _writing(path):
            file.close()
            _partial(path).replace(path)


def write(path: Path, text: str) -> None:
    """Writes a file. Raises RunError."""
    with _writing(path):
        _partial(path).write_text(text, encoding="utf-8", errors="surrogatepass")
        _partial(path).replace(path)
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
