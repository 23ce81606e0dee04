"""Interprets paths given by the user, in the same way in configurations, options and calls.

``~`` and ``~name`` at the start are home folders, even where no shell expands them (in YAML, or after ``=``).
``$VARIABLES`` are not expanded, because the shell does that. Relative paths are relative to the current folder. Files
are local or mounted: addresses such as ``gs://bucket/run`` are refused.
"""

from __future__ import annotations

import os
import re
import unicodedata

from gpt3_jax.errors import UserError


def local_path(given: str | os.PathLike[str], what: str = "path") -> str:
    """Expands a path, which need not exist. `what` names it in errors, e.g. ``train.run_dir``.

    Raises:
        UserError: the path is empty or an address, begins with the home folder of an unknown user, or has characters
            that are not printable text (control characters, bytes that are not UTF-8).
    """
    path = os.fspath(given)
    if not path:
        raise UserError(f"{what} is empty; expected a path (. is the current folder)")
    strange = [character for character in path if unicodedata.category(character) in ("Cc", "Cs")]
    if strange:
        raise UserError(f"{what} {path!a} has the character {strange[0]!a}; choose a path of printable text")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise UserError(
            f"{what} {path!r} is an address; expected a file or folder of this machine: mount the bucket, or copy it"
        )
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        home = path.split("/")[0]
        raise UserError(
            f"{what} {path!r} begins with {home}, whose home folder does not exist on this machine; write ./{path} "
            "for a file of that name"
        )
    return expanded
