"""Writes the files of a report so that none is ever there in part."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpt3_jax.cluster.log import log
from gpt3_jax.errors import RunError
from gpt3_jax.evals.results import to_json


def make_folder(out: str | os.PathLike[str]) -> Path:
    """The folder, made where it is not there. Raises RunError."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {folder}: {error.strerror}; choose another --out") from None
    return folder


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
