"""Checks the folder for temporary files: that it exists and has room."""

from __future__ import annotations

import os
import shutil

from gpt3_jax.errors import UserError


def require_room(folder: str, size: float, what: str, instead: str) -> None:
    """Raises UserError if `size` bytes of `what` do not fit into `folder`. `instead` is the advice given."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{what} need {size / 1e9:,.2f} GB and {folder} has {free / 1e9:,.2f} GB free; {instead}, or choose "
            "another --folder"
        )


def require_folder(folder: str) -> str:
    """The absolute path of a writable folder. Raises UserError if it is not one."""
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--folder {folder!r} is not a folder that can be written to; choose another")
    return os.path.abspath(folder)
