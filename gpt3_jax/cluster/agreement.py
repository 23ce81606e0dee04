"""What the processes of a run tell one another. All of them make the same calls, in the same order."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_lead() -> bool:
    """Whether this is the process that writes what is written once: lines for the person, records, renames."""
    return jax.process_index() == 0


def from_lead(text: str) -> str:
    """The lead process's `text`, in every process (which all call it; what the others pass is ignored)."""
    if jax.process_count() == 1:
        return text
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    mine = data if is_lead() else np.zeros(size, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(mine), np.uint8)).decode()


def everywhere(ok: bool) -> bool:
    """Whether `ok` holds in every process (which all call it)."""
    if jax.process_count() == 1:
        return ok
    return bool(np.all(multihost_utils.process_allgather(np.int32(ok))))
