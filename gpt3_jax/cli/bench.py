"""`gpt3-jax bench`: what this machine does, measured. So far, the data loader."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from gpt3_jax.config import SourceConfig
from gpt3_jax.errors import UserError


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="gpt3-jax bench", description="Measures how fast sequences are read in training's random order."
    )
    parser.add_argument("what", choices=["loader"], help="what to measure")
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="SOURCE",
        help="token shards to read; without any, shards of random tokens are written to a temporary folder and removed",
    )
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the random shards (default: 1.0 GB)")
    parser.add_argument("--n-ctx", type=int, default=2048, help="tokens in a sequence (default: 2048)")
    parser.add_argument("--batch", type=int, default=256, help="sequences in a batch (default: 256)")
    parser.add_argument("--batches", type=int, default=20, help="batches in a repetition (default: 20)")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions, after one to warm up (default: 5)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    args = parser.parse_args(argv)
    for name in ("gigabytes", "n_ctx", "batch", "batches", "repeat"):
        if getattr(args, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(args, name)}; expected more than 0")
    with tempfile.TemporaryDirectory(prefix="gpt3-jax-bench-") as folder:
        paths = args.paths or [_random_shards(Path(folder) / "tokens", args.gigabytes)]
        rates, size = _measure(paths, args.n_ctx, args.batch, args.batches, args.repeat)
    result = {
        "loader_tokens_per_second": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "gigabytes": size / 1e9,
        "n_ctx": args.n_ctx,
        "batch": args.batch,
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(
            f"loader: {statistics.median(rates) / 1e6:,.1f} million tokens/s (median of {args.repeat}; "
            f"{min(rates) / 1e6:,.1f} to {max(rates) / 1e6:,.1f}), random access over {size / 1e9:.2f} GB, "
            f"batches of {args.batch} sequences of {args.n_ctx} tokens"
        )
    return 0


def _measure(paths: list[str], n_ctx: int, batch: int, batches: int, repeat: int) -> tuple[list[float], int]:
    """Tokens per second of each repetition, reading and placing on the device; and the bytes that are read from."""
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from gpt3_jax.data.loader import Loader
    from gpt3_jax.data.sources import open_source
    from gpt3_jax.data.stream import Stream
    from gpt3_jax.parallel.mesh import DATA

    sources = [open_source(SourceConfig(path=path)) for path in paths]
    stream = Stream(sources, [1.0] * len(sources), n_ctx, seed=0)
    sharding = NamedSharding(Mesh(jax.local_devices()[:1], (DATA,)), PartitionSpec(DATA))
    loader = Loader(stream, sharding, prefetch=2)
    rates = []
    for repetition in range(repeat + 1):
        first = repetition * batches * batch
        started = time.perf_counter()
        for rows in loader.batches((first + i * batch, batch) for i in range(batches)):
            jax.block_until_ready(rows)
        rates.append(batches * batch * n_ctx / (time.perf_counter() - started))
    return rates[1:], sum(path.stat().st_size for source in paths for path in _files(Path(source)))


def _files(source: Path) -> list[Path]:
    return sorted(source.glob("*.bin")) if source.is_dir() else [source]


def _random_shards(folder: Path, gigabytes: float) -> str:
    """Shards of random byte tokens, as `data tokenize` writes them."""
    import numpy as np

    from gpt3_jax.data.tokenizer import ByteTokenizer
    from gpt3_jax.data.writer import ShardWriter

    document = 1 << 20
    generator = np.random.default_rng(0)
    with ShardWriter(folder, ByteTokenizer(), {"source": "gpt3-jax bench"}) as writer:
        for _ in range(max(1, round(gigabytes * 1e9 / 2 / document))):
            writer.append(generator.integers(0, 256, document, dtype=np.uint16), np.array([document]), document)
        writer.finish()
    return str(folder)
