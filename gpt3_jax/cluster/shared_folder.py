"""Checks that all processes of a run see the same folder, before anything else is done in it."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from pathlib import Path

import jax

from gpt3_jax.cluster.agreement import from_lead, gather, is_lead
from gpt3_jax.errors import RunError, UserError

SEEN_WITHIN_S = 90.0
"""How long until the other processes must see what one process wrote. NFS clients cache a folder's attributes for up
to 60 s (acdirmax)."""
_RETRY_S = 0.5


def require_shared(folder: Path, setting: str = "train.run_dir") -> None:
    """Creates `folder` and checks that all processes see what process 0 writes there. With one process, does nothing.

    Raises:
        UserError: some processes do not see it. Raised in all processes, with the names of these processes and
            machines.
        RunError: the folder cannot be written.
    """
    if jax.process_count() == 1:
        return
    token, why = secrets.token_hex(16), ""
    if is_lead():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"shared.{token}").write_text(token)
        except OSError as error:
            why = error.strerror or str(error)
    what = f"look into {folder}"
    token, _, why = from_lead(f"{token} {why}", what).partition(" ")
    if why:
        raise RunError(f"cannot write into {folder}: {why}; choose another {setting}")
    seen = _appears(folder / f"shared.{token}", token)
    told = gather(f"{'yes' if seen else 'no'} {socket.gethostname()}", what, 2 * SEEN_WITHIN_S)
    if is_lead():
        with contextlib.suppress(OSError):
            (folder / f"shared.{token}").unlink()
    blind = [f"process {n} on {host}" for n, (ok, _, host) in enumerate(t.partition(" ") for t in told) if ok == "no"]
    if blind:
        more = f" and {len(blind) - 8} more" if len(blind) > 8 else ""
        raise UserError(
            f"{setting} {folder} is not the same folder for all processes: {', '.join(blind[:8])}{more} did not see "
            f"within {SEEN_WITHIN_S:g} s what process 0 on {told[0].partition(' ')[2]} wrote there; choose a folder on "
            "a file system that all machines mount, with its absolute path"
        )


def _appears(path: Path, token: str) -> bool:
    give_up = time.monotonic() + SEEN_WITHIN_S
    while True:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.read_text() == token:
                return True
        if time.monotonic() > give_up:
            return False
        time.sleep(_RETRY_S)
