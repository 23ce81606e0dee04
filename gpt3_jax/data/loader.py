"""Places global batches on a mesh and prefetches them. Each process reads only the rows that its devices hold."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import jax
import numpy as np

from gpt3_jax.errors import UserError


class Sequences(Protocol):
    """What the loader reads from: `stream.Stream` or `stream.HeldOut`."""

    n_ctx: int

    def sequences(self, indices: np.ndarray) -> np.ndarray:
        """int64 [n] -> int32 [n, n_ctx + 1]."""
        ...


class Batch(NamedTuple):
    """The range of sequences that a batch holds."""

    first: int
    """Index of the first sequence in the stream."""
    sequences: int


class Loader:
    """Prefetches batches in a thread and places them on devices.

    Args:
      stream: source of the sequences.
      sharding: of an array [sequences, n_ctx + 1]. Rows may be sharded over any mesh axes and replicated over others.
      prefetch: number of batches to prefetch, at least 1.
    """

    def __init__(self, stream: Sequences, sharding: jax.sharding.NamedSharding, prefetch: int) -> None:
        if prefetch < 1:
            raise UserError(f"data.prefetch is {prefetch}; expected at least 1")
        self._stream = stream
        self._sharding = sharding
        self._prefetch = prefetch

    def batches(self, plan: Iterable[Batch]) -> Generator[tuple[Batch, jax.Array], None, None]:
        """Yields each entry of the plan with its rows, int32 [sequences, n_ctx + 1].

        The plan may be endless and is read `prefetch` entries ahead. An exception in the thread is raised here
        unchanged, at its batch. Closing the generator ends the thread.

        Raises:
          UserError: the devices do not divide the number of sequences.
          RunError: reading fails.
        """
        entries = iter(plan)
        pending: deque[tuple[Batch, Future[jax.Array]]] = deque()
        thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        try:
            for entry in itertools.islice(entries, self._prefetch):
                pending.append((entry, thread.submit(self.batch, entry.first, entry.sequences)))
            while pending:
                entry, future = pending.popleft()
                rows = future.result()
                for later in itertools.islice(entries, 1):
                    pending.append((later, thread.submit(self.batch, later.first, later.sequences)))
                yield entry, rows
        finally:
            thread.shutdown(wait=True, cancel_futures=True)

    def batch(self, first: int, count: int) -> jax.Array:
        """Reads the batch of sequences first .. first + count - 1 now; int32 [count, n_ctx + 1]."""
        shape = (count, self._stream.n_ctx + 1)
        try:
            places = _places(self._sharding, shape)
        except ValueError as error:
            raise UserError(
                f"a batch of {count} sequences of {shape[1]} tokens does not divide over the mesh "
                f"{dict(self._sharding.mesh.shape)} as {self._sharding.spec}; choose a batch that does"
            ) from error
        # Devices along a tensor axis hold the same rows, which are read once.
        blocks = read_rows(self._stream, first, {row_range(index, count) for index in places.values()})
        shards = [
            jax.device_put(blocks[row_range(index, count)][:, index[1]], device) for device, index in places.items()
        ]
        return jax.make_array_from_single_device_arrays(shape, self._sharding, shards)


def _places(sharding: jax.sharding.NamedSharding, shape: tuple[int, int]) -> dict[jax.Device, tuple[slice, ...]]:
    """The slices of an array of `shape` that this process's devices hold."""
    places = sharding.addressable_devices_indices_map(shape)
    return {device: index for device, index in places.items() if index is not None}


def row_range(index: tuple[slice, ...], count: int) -> tuple[int, int]:
    """First row that a device holds and the row after its last, of `count` rows, from its index in a sharding."""
    start, stop, _ = index[0].indices(count)
    return start, stop


def read_rows(stream: Sequences, first: int, ranges: Iterable[tuple[int, int]]) -> dict[tuple[int, int], np.ndarray]:
    """Reads row ranges of the batch that begins at sequence `first`: {(start, stop): int32 [stop - start, ...]}.

    A process reads no other data. What it reads depends on the rows that it holds, not on its index or the number of
    processes.
    """
    ordered = sorted(ranges)
    wanted = [np.arange(first + start, first + stop, dtype=np.int64) for start, stop in ordered]
    block = stream.sequences(np.concatenate(wanted))
    ends = np.cumsum([stop - start for start, stop in ordered])
    return dict(zip(ordered, np.split(block, ends[:-1]), strict=True))
