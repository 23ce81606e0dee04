"""The quickstart's text: the source of this machine's Python standard library, as byte tokens. No download."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import lzma
import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from gpt3_jax.config import SourceConfig
from gpt3_jax.data import made_text
from gpt3_jax.data.files import read_errors
from gpt3_jax.errors import UserError

HELDOUT_FRACTION = 0.04
HELDOUT_BYTES = 300_000
"""Minimum size of the held-out text. With less, the loss would be too noisy to compare."""

# Installed packages are not the standard library. Tests, generated tables and grammar data are not prose or code that a
# small model should spend capacity on.
_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idle_test",
        "lib2to3",
        "encodings",
        "pydoc_data",
        "ensurepip",
        "turtledemo",
        "__phello__",
    }
)
_SKIPPED_PREFIXES = ("_sysconfigdata", "_sysconfig_vars", "sitecustomize", "usercustomize")  # machine-specific


@dataclasses.dataclass(frozen=True)
class StdlibText:
    """Token shards of the standard library's text."""

    train: SourceConfig
    heldout: SourceConfig
    heldout_bytes: bytes
    """The held-out files concatenated, without end-of-text."""
    train_files: int
    heldout_files: int


def prepare(folder: str | Path, library: str | Path | None = None, begun: bool = False) -> StdlibText:
    """Writes FOLDER/train and FOLDER/heldout, or reuses them if they are intact and hold the same text.

    A document is a file, without its name. About 4 % of the text, chosen by a hash of each file's name, is held out.

    Args:
      folder: where to write the shards. Several processes may prepare it at once.
      library: root of the library; None: that of the running interpreter.
      begun: whether a run has begun on the text that is there, which is not replaced then.

    Raises:
      UserError: the interpreter came without its library's source; a run has begun on other text.
      RunError: the folder cannot be written.
    """
    root = Path(library) if library is not None else Path(sysconfig.get_paths()["stdlib"])
    train, heldout = split(read_library(root))
    folder = Path(folder)
    for name, files in (("train", train), ("heldout", heldout)):
        recipe = {"text_sha256": _text_sha256(files), "files": len(files)}
        made_text.ensure(folder / name, recipe, files.values(), begun)
    return StdlibText(
        train=SourceConfig(path=str(folder / "train")),
        heldout=SourceConfig(path=str(folder / "heldout")),
        heldout_bytes=b"".join(heldout.values()),
        train_files=len(train),
        heldout_files=len(heldout),
    )


def compressors(text: bytes) -> dict[str, float]:
    """Bits per byte of general compressors on `text`, as baselines for a model's loss."""
    sizes = {
        "gzip -9": len(gzip.compress(text, compresslevel=9, mtime=0)),
        "xz -9": len(lzma.compress(text, preset=9)),
    }
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def read_library(root: Path) -> dict[str, bytes]:
    """The .py files under `root` by relative name, sorted by name. Raises UserError if there is too little text."""
    files: dict[str, bytes] = {}
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS and not name.startswith("config-")]
        for name in names:
            if name.endswith(".py") and not name.startswith(_SKIPPED_PREFIXES):
                path = Path(parent, name)
                with read_errors(path):
                    data = path.read_bytes()
                if data and _is_utf8(data):
                    files[path.relative_to(root).as_posix()] = data
    total = sum(map(len, files.values()))
    if total < 4 * HELDOUT_BYTES:
        raise UserError(
            f"{root} holds {total} bytes of Python source, too little for the quickstart; this Python came without its "
            "library's source, give text of your own with data.train"
        )
    return dict(sorted(files.items()))


def split(files: Mapping[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """(training files, held-out files). Files are held out in order of a hash of their name until both limits are
    reached."""
    enough = max(HELDOUT_BYTES, HELDOUT_FRACTION * sum(map(len, files.values())))
    chosen: set[str] = set()
    size = 0
    for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if size >= enough:
            break
        chosen.add(name)
        size += len(files[name])
    train = {name: data for name, data in files.items() if name not in chosen}
    return train, {name: data for name, data in files.items() if name in chosen}


def _text_sha256(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for data in files.values():
        digest.update(f"{len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
