"""Sources, streams and the loader: the same sequences for any number of hosts, and clear errors for bad files."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gpt3_jax.config import SourceConfig
from gpt3_jax.data.loader import Batch, Loader, read_rows, row_range
from gpt3_jax.data.shards import INDEX, ShardSource
from gpt3_jax.data.sources import open_source
from gpt3_jax.data.stream import HeldOut, Stream, open_heldout, open_stream
from gpt3_jax.data.tokenizer import load_tokenizer
from gpt3_jax.data.writer import ShardWriter
from gpt3_jax.errors import RunError, UserError

N_CTX = 16


def write_shards(folder: Path, n_tokens: int, seed: int = 0, shard_tokens: int = 997) -> np.ndarray:
    """Random byte documents; returns all tokens."""
    rng = np.random.default_rng(seed)
    tokenizer = load_tokenizer("bytes")
    tokens = rng.integers(0, 256, n_tokens).astype(np.uint16)
    ends = np.unique(np.append(rng.integers(0, n_tokens, n_tokens // 40), n_tokens - 1))
    tokens[ends] = tokenizer.eot
    with ShardWriter(folder, tokenizer, {}, shard_tokens=shard_tokens) as writer:
        writer.append(tokens, np.diff(ends, prepend=-1), n_tokens - len(ends))
        writer.finish()
    return tokens


def write_megatron(prefix: Path, documents: list[list[np.ndarray]], code: int, dtype: str) -> np.ndarray:
    """A Megatron dataset of documents of sequences, written from the format's description; returns all tokens."""
    sequences = [np.asarray(sequence, dtype) for document in documents for sequence in document]
    tokens = np.concatenate(sequences)
    tokens.tofile(f"{prefix}.bin")
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    offsets = (np.cumsum(lengths, dtype=np.int64) - lengths) * tokens.itemsize
    firsts = np.cumsum([0] + [len(document) for document in documents], dtype=np.int64)
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sequences), len(firsts))
    Path(f"{prefix}.idx").write_bytes(header + lengths.tobytes() + offsets.tobytes() + firsts.tobytes())
    return tokens


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[SourceConfig, ...]:
    folder = tmp_path_factory.mktemp("sources")
    write_shards(folder / "web", 60_000, seed=1)
    write_shards(folder / "books", 9_000, seed=2)
    np.random.default_rng(3).integers(0, 257, 30_000).astype(np.uint16).tofile(folder / "nano.bin")
    return (
        SourceConfig(str(folder / "web"), weight=0.6),
        SourceConfig(str(folder / "books"), weight=0.3),
        SourceConfig(str(folder / "nano.bin"), weight=0.1),
    )


@pytest.fixture(scope="module")
def stream(sources: tuple[SourceConfig, ...]) -> Stream:
    return open_stream(sources, N_CTX, 7, 257, load_tokenizer("bytes").fingerprint)


def hashes(rows: np.ndarray) -> list[bytes]:
    return [hashlib.sha256(row.tobytes()).digest() for row in np.ascontiguousarray(rows, np.int32)]


def mesh_of(*shape: int) -> Mesh:
    names = ("data", "tensor")[: len(shape)]
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, devices=devices, axis_types=(AxisType.Auto,) * len(shape))


def test_a_sequence_is_a_window_that_shares_one_token_with_the_next(tmp_path: Path) -> None:
    tokens = write_shards(tmp_path / "x", 5000)
    source = ShardSource(tmp_path / "x")
    stream = Stream([source], [1.0], N_CTX, seed=0)
    n = (5000 - 1) // N_CTX
    got = stream.sequences(np.arange(n))
    place = [location.token for location in stream.locate(np.arange(n))]
    assert sorted(place) == [i * N_CTX for i in range(n)]
    assert place != sorted(place)
    for row, start in zip(got, place, strict=True):
        assert row.tolist() == tokens[start : start + N_CTX + 1].tolist()
    heldout = HeldOut([source], N_CTX)
    assert heldout.n_sequences == n
    targets = heldout.sequences(np.arange(n))[:, 1:].ravel()
    assert targets.tolist() == tokens[1 : 1 + n * N_CTX].tolist()


def test_heldout_sources_follow_one_another(sources: tuple[SourceConfig, ...]) -> None:
    heldout = open_heldout(sources, N_CTX, 257, None)
    sizes = [(open_source(config).n_tokens - 1) // N_CTX for config in sources]
    assert heldout.n_sequences == sum(sizes)
    locations = heldout.locate(np.arange(heldout.n_sequences))
    expected = [(c.path, i * N_CTX) for c, size in zip(sources, sizes, strict=True) for i in range(size)]
    assert [(location.path, location.token) for location in locations] == expected
    with pytest.raises(ValueError, match="held out"):
        heldout.sequences(np.array([heldout.n_sequences]))


def test_reads_straddle_shards_and_open_files_are_bounded(tmp_path: Path) -> None:
    tokens = write_shards(tmp_path / "x", 500, shard_tokens=7)
    source = ShardSource(tmp_path / "x", open_files=3)
    for start, count in ((0, 500), (3, 2), (6, 2), (7, 7), (13, 100), (499, 1), (500, 0)):
        assert source.read(start, count).tolist() == tokens[start : start + count].tolist()
    opened = [os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()]
    assert 1 <= sum(str(tmp_path / "x" / "tokens-") in path for path in opened) <= 3
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(), "a map that shrinks is a SIGBUS"
    for start, count in ((-1, 2), (499, 2)):
        with pytest.raises(ValueError, match="of 500"):
            source.read(start, count)


def test_locations_name_the_document(stream: Stream) -> None:
    for location, row in zip(stream.locate(np.arange(200)), stream.sequences(np.arange(200)), strict=True):
        source = open_source(SourceConfig(location.path))
        assert source.read(location.token, N_CTX + 1).tolist() == row.tolist()
        if location.path.endswith(".bin"):
            assert location.document is None
        else:
            before = source.read(0, location.token)
            assert location.document == (before == 256).sum()
            assert f"document {location.document}" in str(location)


def test_fingerprints_tell_streams_apart(sources: tuple[SourceConfig, ...], stream: Stream) -> None:
    def fingerprint(configs: tuple[SourceConfig, ...], n_ctx: int = N_CTX, seed: int = 7) -> str:
        return open_stream(configs, n_ctx, seed, 257, None).fingerprint

    assert fingerprint(sources) == stream.fingerprint
    heavier = (SourceConfig(sources[0].path, weight=0.7), *sources[1:])
    others = {fingerprint(sources[:2]), fingerprint(heavier), fingerprint(sources, 15), fingerprint(sources, seed=8)}
    assert len(others | {stream.fingerprint}) == 5


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_ten_thousand_sequences_are_the_same_for_any_number_of_hosts(stream: Stream, hosts: int) -> None:
    count, start = 80, 123
    n = 10_000
    expected = hashes(stream.sequences(np.arange(start, start + n)))
    sharding = NamedSharding(mesh_of(8), PartitionSpec("data"))
    places = sharding.devices_indices_map((count, N_CTX + 1))
    devices = list(places)
    per_host = [devices[host * 8 // hosts : (host + 1) * 8 // hosts] for host in range(hosts)]
    got: list[bytes] = []
    for first in range(start, start + n, count):
        batch = np.zeros((count, N_CTX + 1), np.int32)
        rows_read = 0
        for host in per_host:
            # What one process of `hosts` does: its devices' rows, nothing else.
            for (low, high), block in read_rows(stream, first, {row_range(places[d], count) for d in host}).items():
                batch[low:high] = block
                rows_read += high - low
        assert rows_read == count
        got += hashes(batch)
    assert got == expected


def test_any_starting_index_gives_the_same_sequences(stream: Stream) -> None:
    expected = hashes(stream.sequences(np.arange(3000)))
    for start, step in ((0, 3000), (1, 1), (999, 7), (2500, 100)):
        got = [
            h
            for first in range(start, 3000, step)
            for h in hashes(stream.sequences(np.arange(first, min(first + step, 3000))))
        ]
        assert got == expected[start:]


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((8,), ("data",)),
        ((4, 2), ("data",)),
        ((2, 4), ("data",)),
        ((2, 4), ("tensor",)),
        ((4, 2), (("data", "tensor"),)),
        ((1,), ()),
    ],
)
def test_batches_hold_the_plan_on_any_mesh(stream: Stream, shape: tuple[int, ...], spec: tuple[str, ...]) -> None:
    sharding = NamedSharding(mesh_of(*shape), PartitionSpec(*spec))
    plan = [Batch(0, 8), Batch(8, 8), Batch(16, 24), Batch(40, 64), Batch(1000, 16)]
    batches = list(Loader(stream, sharding, prefetch=2).batches(plan))
    assert [entry for entry, _ in batches] == plan
    for (first, count), batch in batches:
        assert batch.sharding == sharding
        assert batch.dtype == np.int32
        expected = stream.sequences(np.arange(first, first + count))
        assert (np.asarray(batch) == expected).all()
        for shard in batch.addressable_shards:
            assert (np.asarray(shard.data) == expected[shard.index]).all()


class Recorder:
    """A stream that notes what is read, and by which thread."""

    n_ctx = 1

    def __init__(self, fail_at: int = -1) -> None:
        self.reads: list[list[int]] = []
        self.threads: set[int] = set()
        self._fail_at = fail_at

    def sequences(self, indices: np.ndarray) -> np.ndarray:
        if self._fail_at in indices:
            raise RunError(f"sequence {self._fail_at} is unreadable")
        self.reads.append(indices.tolist())
        self.threads.add(threading.get_ident())
        return np.stack([indices, indices], axis=1).astype(np.int32)


def test_rows_repeated_over_the_tensor_axis_are_read_once() -> None:
    recorder = Recorder()
    sharding = NamedSharding(mesh_of(2, 4), PartitionSpec("data"))
    list(Loader(recorder, sharding, prefetch=1).batches([Batch(10, 4)]))
    assert sorted(row for rows in recorder.reads for row in rows) == [10, 11, 12, 13]


def test_reading_stays_prefetch_batches_ahead_in_one_other_thread() -> None:
    recorder = Recorder()
    sharding = NamedSharding(mesh_of(1), PartitionSpec("data"))
    taken = 0

    def endless() -> Iterator[Batch]:
        nonlocal taken
        while True:
            taken += 1
            yield Batch(taken, 1)

    batches = Loader(recorder, sharding, prefetch=3).batches(endless())
    for step in range(1, 6):
        assert np.asarray(next(batches)[1])[0, 0] == step
        assert taken == step + 3
    running = threading.active_count()
    batches.close()
    assert threading.active_count() == running - 1, "the reading thread outlived its consumer"
    assert len(recorder.threads) == 1
    assert threading.get_ident() not in recorder.threads


def test_an_error_in_the_thread_surfaces_at_its_batch() -> None:
    sharding = NamedSharding(mesh_of(1), PartitionSpec("data"))
    batches = Loader(Recorder(fail_at=5), sharding, prefetch=4).batches(Batch(i, 1) for i in range(100))
    for step in range(5):
        assert np.asarray(next(batches)[1])[0, 0] == step
    before = threading.active_count()
    with pytest.raises(RunError, match="sequence 5 is unreadable"):
        next(batches)
    assert threading.active_count() == before - 1


def test_a_batch_that_does_not_divide_is_refused(stream: Stream) -> None:
    sharding = NamedSharding(mesh_of(8), PartitionSpec("data"))
    with pytest.raises(UserError, match=r"12 sequences .* \{'data': 8\}"):
        list(Loader(stream, sharding, prefetch=1).batches([Batch(0, 12)]))


def test_threads_read_the_same(stream: Stream) -> None:
    expected = stream.sequences(np.arange(2000))
    wrong: list[int] = []

    def work(part: int) -> None:
        for first in range(part, 2000, 40):
            if (stream.sequences(np.arange(first, first + 1)) != expected[first : first + 1]).any():
                wrong.append(first)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_far_indices_cost_what_near_ones_cost(stream: Stream) -> None:
    def seconds(first: int) -> float:
        best = []
        for _ in range(5):
            began = time.perf_counter()
            stream.mixture.draw(np.arange(first, first + 20_000))
            best.append(time.perf_counter() - began)
        return min(best)

    assert seconds(150_000_000) < 5 * seconds(0)


# Bad files.


def test_truncated_shards_are_an_error_at_open(tmp_path: Path) -> None:
    write_shards(tmp_path / "x", 5000)
    for name in ("tokens-00002.bin", "documents.bin"):
        path = tmp_path / "x" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-2])
        with pytest.raises(RunError, match=rf"{name} has {len(whole) - 2} bytes where the index says {len(whole)}"):
            ShardSource(tmp_path / "x")
        path.unlink()
        with pytest.raises(RunError, match=rf"{name} is not there.*the index beside it lists it"):
            ShardSource(tmp_path / "x")
        path.write_bytes(whole)
    ShardSource(tmp_path / "x").verify()


def test_a_flipped_bit_is_found_by_verify(tmp_path: Path) -> None:
    write_shards(tmp_path / "x", 5000)
    for name in ("tokens-00003.bin", "documents.bin"):
        path = tmp_path / "x" / name
        data = bytearray(path.read_bytes())
        data[37] ^= 4
        path.write_bytes(data)
        with pytest.raises(RunError, match=f"{name} does not have the checksum"):
            ShardSource(tmp_path / "x").verify()
        data[37] ^= 4
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"n_tokens": 5000', '"n_tokens": 5001'), ('"uint16"', '"uint32"'), ('"shards"', '"shard"'), ("{", "")],
)
def test_a_damaged_index_is_an_error(old: str, new: str, tmp_path: Path) -> None:
    write_shards(tmp_path / "x", 5000)
    index = tmp_path / "x" / INDEX
    assert old in index.read_text()
    index.write_text(index.read_text().replace(old, new, 1))
    with pytest.raises(RunError, match="damaged"):
        ShardSource(tmp_path / "x")


def test_sources_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "short", N_CTX)
    write_shards(tmp_path / "good", 1000)
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "odd.bin").write_bytes(b"abc")
    (tmp_path / "text.txt").write_bytes(b"abc")
    (tmp_path / "folder").mkdir()
    np.array([1] * 100 + [257] + [1] * 100, np.uint16).tofile(tmp_path / "beyond.bin")
    np.array([1] * 100 + [-1] + [1] * 100, np.int32).tofile(tmp_path / "negative.bin")
    np.array([1] * 100 + [2**32 - 1] + [1] * 100, np.uint32).tofile(tmp_path / "wide.bin")

    def use(name: str, n_vocab: int = 257, dtype: str = "auto", fingerprint: str | None = None) -> None:
        config = SourceConfig(str(tmp_path / name), dtype=dtype)  # type: ignore[arg-type]
        open_stream((config,), N_CTX, 0, n_vocab, fingerprint).sequences(np.arange(12))

    use("good", fingerprint=load_tokenizer("bytes").fingerprint)
    cases: list[tuple[type[Exception], str, dict[str, object]]] = [
        (UserError, "16 tokens, fewer than one sequence of n_ctx \\+ 1 = 17", {"name": "short"}),
        (UserError, "is empty", {"name": "empty.bin"}),
        (RunError, "3 bytes, not a whole number", {"name": "odd.bin", "dtype": "uint16"}),
        (UserError, "data tokenize", {"name": "text.txt"}),
        (UserError, "has no index.json", {"name": "folder"}),
        (UserError, "does not exist", {"name": "nothing"}),
        (UserError, "token id 256, but the model's vocabulary ends at 255", {"name": "good", "n_vocab": 256}),
        (UserError, "token id 257 at token 100", {"name": "beyond.bin"}),
        (UserError, "token id -1 at token 100", {"name": "negative.bin", "dtype": "int32"}),
        (UserError, "token id 4294967295 at token 100", {"name": "wide.bin", "dtype": "uint32"}),
        (UserError, "written by the tokenizer", {"name": "good", "fingerprint": "0" * 64}),
    ]
    for kind, says, arguments in cases:
        with pytest.raises(kind, match=says):
            use(**arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no data sources"):
        open_stream((), N_CTX, 0, 257, None)


# Other programs' files.


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int32"])
def test_nanogpt_files_are_read_as_they_are(dtype: str, tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 50257, 4000).astype(dtype)
    tokens.tofile(tmp_path / "train.bin")
    source = open_source(SourceConfig(str(tmp_path / "train.bin"), dtype=dtype))  # type: ignore[arg-type]
    assert (source.n_tokens, source.n_documents, source.document_at(5)) == (4000, None, None)
    assert source.read(10, 3990).tolist() == tokens[10:].tolist()
    before = source.fingerprint
    tokens[77] ^= 1
    tokens.tofile(tmp_path / "train.bin")
    assert open_source(SourceConfig(str(tmp_path / "train.bin"), dtype=dtype)).fingerprint != before  # type: ignore[arg-type]


@pytest.mark.parametrize(("code", "dtype"), [(8, "<u2"), (4, "<i4"), (5, "<i8"), (1, "u1")])
def test_megatron_files_are_read_as_they_are(code: int, dtype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [[rng.integers(0, 200, rng.integers(0, 30)) for _ in range(rng.integers(1, 4))] for _ in range(50)]
    tokens = write_megatron(tmp_path / "my.data", documents, code, dtype)
    for name in ("my.data", "my.data.bin", "my.data.idx"):
        source = open_source(SourceConfig(str(tmp_path / name)))
        assert (source.n_tokens, source.n_documents) == (len(tokens), 50)
        assert source.read(3, len(tokens) - 3).tolist() == tokens[3:].tolist()
    position = 0
    for number, document in enumerate(documents):
        length = sum(map(len, document))
        if length:
            assert source.document_at(position) == source.document_at(position + length - 1) == number
        position += length


def test_damaged_megatron_files_are_named(tmp_path: Path) -> None:
    documents = [[np.arange(9), np.arange(4)], [np.arange(30)]]
    prefix = tmp_path / "m"

    def damaged(says: str, kind: type[Exception], idx: bytes | None = None, data: bytes | None = None) -> None:
        write_megatron(prefix, documents, 8, "<u2")
        if idx is not None:
            Path(f"{prefix}.idx").write_bytes(idx)
        if data is not None:
            Path(f"{prefix}.bin").write_bytes(data)
        with pytest.raises(kind, match=says):
            open_source(SourceConfig(str(prefix)))

    write_megatron(prefix, documents, 8, "<u2")
    idx, data = Path(f"{prefix}.idx").read_bytes(), Path(f"{prefix}.bin").read_bytes()
    damaged("does not begin with MMIDIDX", UserError, idx=b"X" + idx[1:])
    damaged("does not begin with MMIDIDX", UserError, idx=b"")
    damaged("truncated inside its header", RunError, idx=idx[:20])
    damaged("it is truncated", RunError, idx=idx[:-1])
    damaged("version 2", UserError, idx=idx[:9] + b"\x02" + idx[10:])
    damaged("type code 6", UserError, idx=idx[:17] + b"\x06" + idx[18:])
    damaged("counts 86 bytes of ids but its .bin has 84", RunError, data=data[:-2])
    damaged("sequence 1 does not begin", RunError, idx=idx[:34] + b"\x08" + idx[35:])
    damaged("document positions", RunError, idx=idx[:-8] + b"\x02" + idx[-7:])
    Path(f"{prefix}.bin").unlink()
    with pytest.raises(UserError, match=r"m\.bin is not there"):
        open_source(SourceConfig(str(prefix)))
