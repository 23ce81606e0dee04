"""Measures the data loader: sequences read in training's random order and placed on a device."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt3_jax.bench.machine import require_memory
from gpt3_jax.bench.storage import require_room
from gpt3_jax.bench.timing import Spread
from gpt3_jax.config import SourceConfig
from gpt3_jax.data.loader import Batch, Loader
from gpt3_jax.data.sources import open_source
from gpt3_jax.data.stream import Stream
from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.data.writer import ShardWriter
from gpt3_jax.parallel.mesh import DATA

_DOCUMENT = 1 << 20


@dataclasses.dataclass(frozen=True)
class LoaderTimes:
    """The measured rates."""

    tokens_per_second: Spread
    """One value per repetition."""
    bytes: int
    """Total size of the token files."""
    n_ctx: int
    batch: int
    """Sequences in a batch."""
    sources: list[str]
    """The sources; empty for random tokens written for the measurement."""


def measure(
    sources: Sequence[SourceConfig], gigabytes: float, n_ctx: int, batch: int, batches: int, repeat: int, folder: str
) -> LoaderTimes:
    """Reads batches and places them on the first device, `repeat` times after one to warm up.

    Args:
        sources: token sources to read; none: random tokens.
        gigabytes: size of the random tokens, written into a temporary folder inside `folder`, which is removed.
        batches: batches per repetition.

    Raises:
        UserError: a source that is not there; no room for the random tokens.
        RunError: a source that is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="gpt3-jax-bench-", dir=folder) as temporary:
        read = list(sources)
        if not read:
            require_room(folder, gigabytes * 1e9, "random token shards", "lower --gigabytes")
            read = [SourceConfig(path=_random_shards(Path(temporary) / "tokens", gigabytes))]
        opened = [open_source(source) for source in read]
        stream = Stream(opened, [source.weight for source in read], n_ctx, seed=0)
        sharding = NamedSharding(Mesh(jax.local_devices()[:1], (DATA,)), PartitionSpec(DATA))
        # Three batches are in flight at a time, each as int32 on the host and on the device.
        require_memory(3 * 2 * 4 * batch * (n_ctx + 1), "the batches", "lower --batch")
        loader = Loader(stream, sharding, prefetch=2)
        rates = []
        for repetition in range(repeat + 1):
            first = repetition * batches * batch
            started = time.perf_counter()
            for _, rows in loader.batches(Batch(first + i * batch, batch) for i in range(batches)):
                jax.block_until_ready(rows)
            rates.append(batches * batch * n_ctx / (time.perf_counter() - started))
        size = sum(source.n_tokens * source.dtype.itemsize for source in opened)
    return LoaderTimes(Spread.of(rates[1:]), size, n_ctx, batch, [source.path for source in sources])


def _random_shards(folder: Path, gigabytes: float) -> str:
    """Writes shards of random byte tokens, as `data tokenize` does."""
    generator = np.random.default_rng(0)
    with ShardWriter(folder, ByteTokenizer(), {"source": "gpt3-jax bench"}) as writer:
        for _ in range(max(1, round(gigabytes * 1e9 / 2 / _DOCUMENT))):
            writer.append(generator.integers(0, 256, _DOCUMENT, dtype=np.uint16), np.array([_DOCUMENT]), _DOCUMENT)
        writer.finish()
    return str(folder)
