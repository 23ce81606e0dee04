"""The arrays of one checkpoint on disk, through Orbax and TensorStore. The only file that imports the two.

Orbax writes each array as Zarr chunks inside a TensorStore key-value store (OCDBT). Each process writes its own store.
At the end the lead process merges their indices.
"""

from __future__ import annotations

import glob
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import tensorstore as ts
from etils import epath
from orbax.checkpoint import v1 as ocp

from gpt3_jax.errors import UserError

_STATE = "state"
_SAVE_TIMEOUT_S = 3600  # Orbax's 20 minutes are too short for terabytes on a busy network disk
_AT_ONCE = 32  # files looked at together: each is a round trip to a network disk, and every process wrote several
_INSIDE = 100  # bytes; smaller chunks are stored in the index, which is compressed

_OrbaxPath: Any = type(epath.Path("/"))


def require_own_name(path: Path) -> None:
    """Raises UserError for a path that the libraries interpret differently, before anything is written.

    epath takes a folder in ``/gs``, ``/s3``, ``/az`` or ``/hf`` for a bucket. TensorStore takes a backslash for a
    slash.
    """
    absolute = os.path.abspath(path)
    root = absolute.split("/")[1]
    if root in ("gs", "s3", "az", "hf"):
        raise UserError(
            f"checkpoints cannot be in {absolute}: the library that writes them takes /{root} for {root}://; mount it "
            "under another name, or give a path through a symbolic link"
        )
    if "\\" in absolute:
        raise UserError(
            f"checkpoints cannot be in {absolute}: TensorStore, which writes them, takes a backslash for a slash; "
            "choose another name"
        )


class _LiteralPath(_OrbaxPath):  # type: ignore[misc]
    """An Orbax path in which every character is literal.

    Orbax finds the processes' indices with a glob below the checkpoint, and epath makes the checkpoint's own path part
    of the pattern. Below ``run[1]`` it would find nothing, and below ``run*`` the files of other runs.
    """

    def glob(self, pattern: str) -> Iterator[_LiteralPath]:
        for found in glob.glob(os.path.join(glob.escape(os.fspath(self)), pattern)):
            yield type(self)(found)


def save(path: Path, leaves: Mapping[str, jax.Array], metadata: Any) -> Callable[[], None]:
    """Starts to write a checkpoint, and returns once the arrays are copied to the host. All processes call it.

    `path` appears when everything is written. The returned function waits for that. `metadata` is any JSON. Both raise
    Orbax's errors: OSError, RuntimeError, ValueError.
    """
    with _context():
        response = ocp.save_checkpointables_async(_literal(path), {_STATE: dict(leaves)}, custom_metadata=metadata)
    return lambda: response.result()


def read_metadata(path: Path) -> Any:
    """The JSON given to `save`. Raises one of `UNREADABLE`."""
    with _context():
        return ocp.metadata(_literal(path), checkpointable_name=_STATE).custom_metadata


def load(path: Path, wanted: Mapping[str, Any], *, partial: bool) -> dict[str, jax.Array]:
    """Reads the named arrays as the given `jax.ShapeDtypeStruct`; without a sharding, onto the first local device.

    With `partial`, the checkpoint may hold other arrays. Each process reads on its own. Raises one of `UNREADABLE`.
    """
    with _context(partial=partial, alone=True):
        arrays: dict[str, jax.Array] = ocp.load_checkpointables(_literal(path), {_STATE: _with_shardings(wanted)})[
            _STATE
        ]
    return arrays


def require_files(path: Path) -> None:
    """Opens every file of a checkpoint. Raises OSError for one without read permission, which Orbax would call
    missing."""

    def fail(error: OSError) -> None:
        raise error

    files = [os.path.join(folder, file) for folder, _, names in os.walk(path, onerror=fail) for file in names]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(lambda file: os.close(os.open(file, os.O_RDONLY)), files):
            pass


def missing(path: Path, leaves: Mapping[str, Mapping[str, Any]], *, whole: bool) -> str:
    """Describes what `load` would not find; empty if everything is there. Reads indices and sizes, not the arrays.

    Opens each array as a restore does and compares shape and dtype with `leaves` (see `describe`). With `whole`, it
    also looks up each chunk of each array and compares the size of the files with that of the arrays. Damage that only
    a checksum can find (changed bits, missing data smaller than the indices) is left to the restore.

    Raises one of `UNREADABLE`, in this thread and without messages from an event loop.
    """
    context = ts.Context()  # a new one has nothing cached of an earlier checkpoint of this name
    base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{os.path.abspath(path)}/{_STATE}/"}}
    opening = {
        name: ts.open({"driver": "zarr3", "kvstore": {**base, "path": f"{name}/"}}, context=context, open=True)
        for name in leaves
    }
    arrays = {name: future.result() for name, future in opening.items()}
    for name, leaf in leaves.items():
        found = f"{tuple(arrays[name].shape)} {arrays[name].dtype.name}"
        expected = f"{tuple(leaf['shape'])} {leaf['dtype']}"
        if found != expected:
            return f"{name} is {found} where {expected} was saved"
    if not whole:
        return ""
    keys = ts.KvStore.open(base, context=context).result().list().result()
    chunks = Counter(key.decode().partition("/c/")[0].removesuffix("/c") for key in keys)
    size = 0
    for name, array in arrays.items():
        shape: tuple[int, ...] = array.shape
        chunk: Any = array.chunk_layout.write_chunk.shape or ()  # None for a scalar
        expected_chunks = math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True))
        if chunks[name] < expected_chunks:
            return f"{name} has {chunks[name]} of its {expected_chunks} chunks"
        itemsize = array.dtype.numpy_dtype.itemsize
        if math.prod(chunk) * itemsize > _INSIDE:
            size += math.prod(shape) * itemsize
    files = [os.path.join(folder, file) for folder, _, names in os.walk(path / _STATE) for file in names]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        there = sum(pool.map(os.path.getsize, files))
    return f"its files have {there:,} bytes, its arrays {size:,}" if there < size else ""


def _literal(path: Path) -> _LiteralPath:
    return _LiteralPath(os.path.abspath(path))  # Orbax requires an absolute path


def _context(*, partial: bool = False, alone: bool = False) -> ocp.Context:
    """Orbax's options. With `alone`, this process reads without waiting for the others at Orbax's barriers."""
    context = ocp.Context()
    context.array.saving.use_compression = False  # takes 4 to 6 times as long and saves 7 %
    context.asynchronous.timeout_secs = _SAVE_TIMEOUT_S
    context.pytree.loading.partial_load = partial
    if alone and jax.process_count() > 1:
        context.multiprocessing.primary_host = jax.process_index()
        context.multiprocessing.active_processes = {jax.process_index()}
    return context


def _with_shardings(wanted: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here)
        for name, leaf in wanted.items()
    }
