"""Measures checkpoints through a run's store: how long training waits for a save, and how long a restore takes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from gpt3_jax.bench.machine import capacity
from gpt3_jax.bench.storage import require_room
from gpt3_jax.bench.timing import Spread
from gpt3_jax.config import Config
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.parallel.mesh import make_mesh
from gpt3_jax.train.checkpoint.integrity import array_checksums, named_leaves
from gpt3_jax.train.checkpoint.reader import CheckpointReader
from gpt3_jax.train.checkpoint.store import CheckpointStore
from gpt3_jax.train.state import abstract_state, init_state


@dataclasses.dataclass(frozen=True)
class CheckpointTimes:
    """The measured times."""

    blocking_seconds: Spread
    """Duration of `CheckpointStore.save`, after which training may continue."""
    on_disk_seconds: Spread
    """From the start of that call until the checkpoint is complete."""
    restore_seconds: Spread
    """Reading it back onto the devices and comparing checksums. May be served from the operating system's page
    cache."""
    bytes: int
    """Size of one checkpoint on disk."""
    folder: str


def measure(config: Config, folder: str, repeat: int) -> CheckpointTimes:
    """Saves and restores the whole training state of `config` on its mesh, `repeat` times, inside `folder`.

    Everything written there is removed, also after an error.

    Raises:
        UserError: not enough room in the folder or on the devices, a mesh that the devices do not form, several
            processes.
        RunError: saving or reading fails.
    """
    if jax.process_count() > 1:
        raise UserError("bench checkpoint runs in one process: its temporary folder is not shared with others")
    mesh = make_mesh(config.parallel)
    abstract = abstract_state(config, mesh)
    require_memory(abstract, mesh)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    # The previous checkpoint is deleted only after the new one is complete.
    require_room(folder, 2.1 * size, "two checkpoints", "take a smaller model")
    state: Any = jax.block_until_ready(init_state(config, mesh))
    array_checksums(named_leaves(state))  # compiled ahead, as in a run
    blocking, complete, restore = [], [], []
    with tempfile.TemporaryDirectory(prefix="gpt3-jax-bench-", dir=folder) as temporary:
        store = CheckpointStore(temporary, keep_last=1, keep_every_tokens=0)
        try:
            for number in range(1, repeat + 1):
                started = time.perf_counter()
                store.save(number, number, state, {})
                blocking.append(time.perf_counter() - started)
                store.wait()
                complete.append(time.perf_counter() - started)
                state = None  # freed before the next one is read, so that only one exists
                started = time.perf_counter()
                restored = CheckpointReader(temporary).restore(abstract, tokens=number)
                assert restored is not None
                jax.block_until_ready(restored.state)
                restore.append(time.perf_counter() - started)
                state = restored.state
                del restored
            written = _bytes(Path(temporary) / f"tokens-{repeat}")
        finally:  # a save in progress would write into the folder while it is removed
            with contextlib.suppress(RunError):
                store.close()
    return CheckpointTimes(Spread.of(blocking), Spread.of(complete), Spread.of(restore), written, folder)


def require_memory(abstract: Any, mesh: Mesh) -> None:
    """Raises UserError if the devices of the mesh cannot hold a state of these shapes and shardings."""
    device = mesh.devices.flat[0]
    # On a CPU the copy being written is in the same memory.
    copies = 2 if device.platform == "cpu" else 1
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in jax.tree.leaves(abstract))
    need = copies * sum(math.prod(shape) * itemsize for shape, itemsize in shards)
    room = capacity(device)
    if room is not None and need > room:
        raise UserError(
            f"the training state needs {need / 2**30:,.1f} GiB on a device, and {device.device_kind} has "
            f"{room / 2**30:,.1f} GiB; take a smaller model, more devices, or raise parallel.stage"
        )


def _bytes(folder: Path) -> int:
    return sum(os.path.getsize(path) for path in folder.rglob("*") if path.is_file())
