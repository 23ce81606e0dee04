"""Files that are not what they should be: one line each, which names the file and says what to do; never a traceback.

Each row: how the input is made, in a folder; what is asked for; the words that the one line must hold. `data` is run as
a person runs it, so that the exit code and the single line are those of the command.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from gpt3_jax.cli.main import main
from gpt3_jax.config import SourceConfig
from gpt3_jax.data import documents as reading
from gpt3_jax.data.shards import ShardSource
from gpt3_jax.data.sources import open_source
from gpt3_jax.data.stream import open_heldout, open_stream
from gpt3_jax.data.tokenize import tokenize
from gpt3_jax.data.tokenizer import ByteTokenizer, load_tokenizer
from gpt3_jax.data.writer import ShardWriter
from gpt3_jax.errors import RunError, UserError

IDS = np.random.default_rng(0).zipf(1.3, 20_000) % 50257


def line_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """(exit code, the line on stderr) of `gpt3-jax data ARGUMENTS`."""
    capsys.readouterr()
    code = main(["data", *arguments])
    error = capsys.readouterr().err
    assert error.count("\n") <= 1, f"more than one line: {error}"
    assert "Traceback" not in error
    return code, error


def shards(folder: Path, tokens: int = 3000, seed: int = 0, n_vocab: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    tokenizer = ByteTokenizer()
    tokenizer.n_vocab = n_vocab or tokenizer.n_vocab
    with ShardWriter(folder, tokenizer, {}, shard_tokens=1000) as writer:
        writer.append(rng.integers(0, 256, tokens), np.array([tokens]), tokens)
        writer.finish()
    return folder


def llm_c(magic: int = 20240520, version: int = 1, count: int | None = None, dtype: str = "<u2") -> bytes:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(IDS) if count is None else count
    return header.tobytes() + IDS.astype(dtype).tobytes()


def numpy_file(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def raw(dtype: str) -> bytes:
    return IDS.astype(dtype).tobytes()


# Files of token ids: what they hold, what the user says of their type, and what is found.

READABLE: list[tuple[str, bytes, str, str]] = [
    ("nanoGPT", raw("<u2"), "auto", "uint16"),
    ("nanoGPT, said", raw("<u2"), "uint16", "uint16"),
    ("uint32", raw("<u4"), "auto", "uint32"),
    ("int32", raw("<i4"), "auto", "uint32"),
    ("int32, said", raw("<i4"), "int32", "int32"),
    ("int64", raw("<i8"), "auto", "int64"),
    ("llm.c and modded-nanogpt", llm_c(), "auto", "uint16"),
    ("llm.c for Llama 3", llm_c(20240801, 7, dtype="<u4"), "auto", "uint32"),
    ("NumPy", numpy_file(IDS.astype(np.uint16)), "auto", "uint16"),
    ("NumPy, big-endian", numpy_file(IDS.astype(">u4")), "auto", "uint32"),
]


@pytest.mark.parametrize(("data", "said", "found"), [row[1:] for row in READABLE], ids=[row[0] for row in READABLE])
@pytest.mark.parametrize("n_vocab", [50257, 100_277, None])
def test_the_type_of_foreign_ids_is_found(
    data: bytes, said: str, found: str, n_vocab: int | None, tmp_path: Path
) -> None:
    (tmp_path / "x.bin").write_bytes(data)
    source = open_source(SourceConfig(str(tmp_path / "x.bin"), dtype=said), n_vocab)  # type: ignore[arg-type]
    assert source.dtype.name == found
    assert source.read(0, source.n_tokens).tolist() == IDS.tolist()


IMPOSSIBLE: list[tuple[str, bytes, str, str]] = [
    ("uint32 as uint16", raw("<u4"), "uint16", "holds uint32 ids: every second id would be 0.*set dtype to uint32"),
    ("int64 as uint32", raw("<i8"), "uint32", "holds int64 ids"),
    ("int64 as uint16", raw("<i8"), "uint16", "holds int64 ids"),
    ("uint16 as uint32", raw("<u2"), "uint32", "token id [0-9]+ at token 0, read as uint32.*vocabulary ends at 50256"),
    ("big-endian uint16", raw(">u2"), "auto", "big-endian uint16 ids; swap the bytes"),
    ("big-endian uint32", raw(">u4"), "auto", "big-endian uint32 ids; swap the bytes"),
    ("big-endian uint32, said", raw(">u4"), "uint32", "big-endian uint32 ids"),
    ("big-endian int64", raw(">i8"), "auto", "big-endian int64 ids"),
    ("beyond the vocabulary", (IDS + 10_000).astype("<u2").tobytes(), "auto", "vocabulary ends at 50256"),
    ("negative", (-IDS).astype("<i4").tobytes(), "int32", "token id -[0-9]+ at token"),
    ("floats", IDS.astype("<f4").tobytes(), "auto", "vocabulary ends at 50256"),
    ("an odd byte", raw("<u2") + b"x", "auto", "40001 bytes, not a whole number of uint16 ids"),
    ("few", raw("<u2")[:40], "auto", "too few to tell the type of its ids; set its type with dtype"),
    ("zeros", bytes(4000), "auto", "zeros only.*set its type"),
    ("empty", b"", "auto", "is empty"),
    ("gzip", gzip.compress(raw("<u2")), "auto", "begins as gzip does"),
    ("zstd", zstandard.compress(raw("<u2")), "auto", "begins as zstd does"),
    ("a zip archive", b"PK\x03\x04" + raw("<u2"), "auto", "begins as a zip archive"),
    ("text", b"hello world, this is text\n" * 100, "auto", "holds text, not token ids.*data tokenize"),
    ("text that is not English", "Grüße, 日本\n".encode() * 100, "auto", "holds text, not token ids"),
    ("UTF-16 text", "hello world".encode("utf-16") * 50, "auto", "begins as UTF-16 text does"),
    (
        "llm.c, truncated",
        llm_c()[:-2],
        "auto",
        "promises 20000 ids of uint16, 41024 bytes with itself, and it has 41022",
    ),
    ("llm.c, too long", llm_c() + b"xx", "auto", "and it has 41026"),
    ("llm.c, a header only", llm_c(count=0)[:1024], "auto", "holds no tokens"),
    ("llm.c, of another version", llm_c(version=2), "auto", "version 2; this program reads 1"),
    ("llm.c's evaluation file", llm_c(20240522), "auto", "evaluation file of llm.c"),
    ("llm.c, said otherwise", llm_c(), "uint32", "dtype is uint32, but its header says uint16; leave dtype out"),
    ("NumPy floats", numpy_file(IDS.astype("<f4")), "auto", "NumPy array of float32"),
    ("NumPy, two dimensions", numpy_file(IDS.reshape(2, -1)), "auto", "expected ids in one dimension"),
    ("NumPy, truncated", numpy_file(IDS)[:-3], "auto", "it is truncated"),
    ("NumPy, damaged", numpy_file(IDS)[:30], "auto", "damaged NumPy header"),
]


@pytest.mark.parametrize("name", [row[0] for row in IMPOSSIBLE])
def test_impossible_ids_are_refused_before_training(name: str) -> None:
    data, said, says = next(row[1:] for row in IMPOSSIBLE if row[0] == name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.bin")
        path.write_bytes(data)
        sources = (SourceConfig(str(path), dtype=said),)  # type: ignore[arg-type]
        for opened in (
            lambda: open_stream(sources, 16, 0, 50257, None),
            lambda: open_heldout(sources, 16, 50257, None),
        ):
            caught = ""
            try:
                opened()
            except (UserError, RunError) as error:
                caught = str(error)
            assert re.search(f"x\\.bin.*{says}", caught), caught or "was not refused"


def test_a_wide_vocabulary_does_not_hide_the_pattern(tmp_path: Path) -> None:
    """With 100,277 ids every uint16 is possible, and the upper halves are 0 or 1."""
    (IDS + 50_000).astype("<u4").tofile(tmp_path / "x.bin")
    with pytest.raises(UserError, match="holds uint32 ids"):
        open_stream((SourceConfig(str(tmp_path / "x.bin"), dtype="uint16"),), 16, 0, 100_277, None)


def becomes_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def megatron(
    folder: Path, code: int = 8, dtype: str = "<u2", change: Callable[[bytes], bytes] = lambda idx: idx
) -> Path:
    IDS.astype(dtype).tofile(folder / "m.bin")
    lengths, firsts = np.array([len(IDS)], "<i4"), np.array([0, 1], "<i8")
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, 1, 2)
    (folder / "m.idx").write_bytes(change(header + lengths.tobytes() + bytes(8) + firsts.tobytes()))
    return folder / "m"


MEGATRON: list[tuple[str, Callable[[Path], object], str]] = [
    ("floats", lambda d: megatron(d, 7, "<f4"), "type code 7; expected whole numbers"),
    ("fairseq's older format", lambda d: megatron(d, change=lambda i: b"TNTIDX\0\0" + i[8:]), "TNTIDX"),
    ("another code than its ids", lambda d: megatron(d, 4, "<u2"), "counts 80000 bytes of ids but its .bin has 40000"),
    ("truncated index", lambda d: megatron(d, change=lambda i: i[:-1]), "it is truncated"),
    ("an index of zeros", lambda d: megatron(d, change=lambda i: bytes(len(i))), "does not begin with MMIDIDX"),
    ("an empty index", lambda d: megatron(d, change=lambda i: b""), "does not begin with MMIDIDX"),
    ("billions of sequences", lambda d: megatron(d, change=lambda i: i[:18] + b"\xff" * 7 + i[25:]), "too few for its"),
    (
        "truncated ids",
        lambda d: os.truncate(f"{megatron(d)}.bin", 500),
        "counts 40000 bytes of ids but its .bin has 500",
    ),
    ("no ids", lambda d: os.truncate(f"{megatron(d)}.bin", 0), "is empty"),
    ("no .bin", lambda d: Path(f"{megatron(d)}.bin").unlink(), r"m\.bin is not there"),
    ("a folder as .bin", lambda d: becomes_a_folder(Path(f"{megatron(d)}.bin")), "is a folder"),
]


@pytest.mark.parametrize(("make", "says"), [row[1:] for row in MEGATRON], ids=[row[0] for row in MEGATRON])
def test_malformed_megatron_datasets(make: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises((UserError, RunError), match=says):
        open_source(SourceConfig(str(tmp_path / "m")), 50257)


@pytest.mark.parametrize(("code", "dtype"), [(4, "<i4"), (5, "<i8"), (8, "<u2"), (9, "<u4"), (10, "<u8")])
def test_megatron_datasets_of_every_type(code: int, dtype: str, tmp_path: Path) -> None:
    source = open_source(SourceConfig(str(megatron(tmp_path, code, dtype))), 50257)
    assert source.read(0, len(IDS)).tolist() == IDS.tolist()


# Our own shards.


def edit(path: Path, at: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= mask
    path.write_bytes(data)


def rewrite(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


SHARDS: list[tuple[str, Callable[[Path], object], str]] = [
    ("a changed byte", lambda d: edit(d / "tokens-00001.bin", 77), r"tokens-00001\.bin does not have the checksum"),
    ("a truncated shard", lambda d: os.truncate(d / "tokens-00001.bin", 10), "has 10 bytes where the index says 2000"),
    ("a shard that is gone", lambda d: (d / "tokens-00002.bin").unlink(), r"tokens-00002\.bin is not there.*restore"),
    ("shards swapped", lambda d: shutil.copy(d / "tokens-00000.bin", d / "tokens-00001.bin"), "it belongs to another"),
    ("changed documents", lambda d: edit(d / "documents.bin", 0), r"documents\.bin does not have the checksum"),
    (
        "a folder as a shard",
        lambda d: becomes_a_folder(d / "tokens-00000.bin"),
        "a folder",
    ),
    ("another type", lambda d: rewrite(d, lambda i: i.update(dtype="uint32")), "counts disagree"),
    ("another count", lambda d: rewrite(d, lambda i: i.update(n_tokens=2999)), "counts disagree"),
    ("fewer shards", lambda d: rewrite(d, lambda i: i["shards"].pop()), "counts disagree"),  # type: ignore[attr-defined]
    ("another version", lambda d: rewrite(d, lambda i: i.update(version=9)), "version 9; this program reads 1 to 2"),
    ("an empty index", lambda d: os.truncate(d / "index.json", 0), "damaged"),
    ("an index that is no object", lambda d: (d / "index.json").write_text("[]"), "damaged"),
    ("an index that is not UTF-8", lambda d: (d / "index.json").write_bytes(b"\xff"), "damaged"),
    ("no index", lambda d: (d / "index.json").unlink(), r"has no index\.json"),
    ("an index that is a folder", lambda d: becomes_a_folder(d / "index.json"), "has no index"),
]


@pytest.mark.parametrize("name", [row[0] for row in SHARDS])
def test_malformed_shards(name: str) -> None:
    harm, says = next(row[1:] for row in SHARDS if row[0] == name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = shards(Path(temporary, "x"))
        harm(folder)
        caught = ""
        try:
            open_stream((SourceConfig(str(folder)),), 16, 0, 257, None)
        except (UserError, RunError) as error:
            caught = str(error)
        assert re.search(says, caught), caught or "was not refused"


def test_a_large_shard_of_another_folder_is_found_by_samples(tmp_path: Path) -> None:
    sources = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        with ShardWriter(tmp_path / str(seed), ByteTokenizer(), {}) as writer:
            writer.append(rng.integers(0, 256, 2_000_000), np.array([2_000_000]), 2_000_000)
            sources.append(writer.finish())
    assert sources[0].fingerprint != sources[1].fingerprint
    shutil.copy(tmp_path / "1" / "tokens-00000.bin", tmp_path / "0" / "tokens-00000.bin")
    with pytest.raises(RunError, match=r"0/tokens-00000\.bin does not have the checksum"):
        ShardSource(tmp_path / "0")
    # As version 1, which has no samples, it is not found; but the run's fingerprint is another.
    rewrite(tmp_path / "0", lambda i: (i.update(version=1), i["shards"][0].pop("sampled")))  # type: ignore[index]
    rewrite(tmp_path / "0", lambda i: (i.pop("left_out"), i.pop("left_out_first")))
    old = ShardSource(tmp_path / "0")
    assert old.fingerprint != sources[0].fingerprint
    with pytest.raises(RunError, match="checksum"):
        old.verify()


def test_a_shard_given_alone_has_the_type_of_its_index(tmp_path: Path) -> None:
    folder = shards(tmp_path / "x", n_vocab=70_000)
    one = SourceConfig(str(folder / "tokens-00001.bin"))
    assert open_source(one, 70_000).dtype == np.uint32
    assert open_source(one, 70_000).read(0, 1000).tolist() == ShardSource(folder).read(1000, 1000).tolist()
    with pytest.raises(UserError, match="dtype is uint16, but the index beside it says uint32"):
        open_source(SourceConfig(one.path, dtype="uint16"), 70_000)
    with pytest.raises(UserError, match="dtype is uint16, but its index says uint32"):
        open_source(SourceConfig(str(folder), dtype="uint16"), 70_000)
    with pytest.raises(UserError, match=r"documents\.bin is not among the shards"):
        open_source(SourceConfig(str(folder / "documents.bin")), 70_000)
    edit(folder / "tokens-00001.bin", 0)
    with pytest.raises(RunError, match="checksum"):
        open_source(one, 70_000)


def test_a_file_that_shrinks_or_changes_under_a_run_is_named(tmp_path: Path) -> None:
    """A memory map would end the process with SIGBUS."""
    paths = [shards(tmp_path / "x") / "tokens-00001.bin", tmp_path / "y.bin"]
    np.random.default_rng(1).integers(0, 256, 3000).astype(np.uint16).tofile(paths[1])
    for path, given in zip(paths, (tmp_path / "x", paths[1]), strict=True):
        stream = open_stream((SourceConfig(str(given)),), 16, 0, 257, None)
        assert stream.sources == ((str(given), open_source(SourceConfig(str(given)), 257).fingerprint),)
        everything = np.arange((3000 - 1) // 16)
        stream.sequences(everything)
        stream.check_files()
        whole = path.read_bytes()
        edit(path, 100)
        with pytest.raises(RunError, match=path.name):
            stream.check_files()
        os.truncate(path, 100)
        with pytest.raises(RunError, match=f"{path.name} has 100 bytes and had [0-9]+ .*: it was shortened"):
            stream.sequences(everything)
        path.write_bytes(whole)
        stream.check_files()


# Text.


def parquet(path: Path, column: pyarrow.Array, name: str = "text") -> None:
    pyarrow.parquet.write_table(pyarrow.table({name: column}), path)


def truncated_parquet(path: Path) -> None:
    parquet(path, pyarrow.array(TEXTS))
    os.truncate(path, 99)


TEXTS = ["one", "", "two", "one"]
PARQUET = {
    "string": pyarrow.array(TEXTS),
    "large_string": pyarrow.array(TEXTS, pyarrow.large_string()),
    "string_view": pyarrow.array(TEXTS, pyarrow.string_view()),
    "binary": pyarrow.array([text.encode() for text in TEXTS], pyarrow.binary()),
    "large_binary": pyarrow.array([text.encode() for text in TEXTS], pyarrow.large_binary()),
    "category": pyarrow.array(TEXTS).dictionary_encode(),
    "category of int8": pyarrow.array(TEXTS).cast(pyarrow.dictionary(pyarrow.int8(), pyarrow.string())),
    "category of large_string": pyarrow.array(TEXTS, pyarrow.large_string()).dictionary_encode(),
    "category of binary": pyarrow.array([text.encode() for text in TEXTS]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", PARQUET)
def test_parquets_text_types(kind: str, tmp_path: Path) -> None:
    parquet(tmp_path / "x.parquet", PARQUET[kind])
    source = tokenize([str(tmp_path / "x.parquet")], tmp_path / "out", "bytes", block_bytes=1)
    assert load_tokenizer("bytes").decode(source.read(0, source.n_tokens)).split("<|endoftext|>") == [
        "one",
        "two",
        "one",
        "",
    ]
    assert source.index.left_out == {"empty": 1}


def compressed(path: Path, data: bytes, change: Callable[[bytes], bytes]) -> None:
    pack = gzip.compress if path.suffix == ".gz" else zstandard.compress
    path.write_bytes(change(pack(data)))


LINES = b'{"text": "a line"}\n' * 500
Make = Callable[[Path], object]
INPUTS: list[tuple[str, str, Make, str]] = [
    # JSONL
    ("null", "x.jsonl", lambda p: p.write_text('{"text": null}'), r"x\.jsonl, line 1: 'text' is null"),
    ("a null document", "x.jsonl", lambda p: p.write_text("\nnull\n"), "line 2: a JSON null; expected an object"),
    ("number", "x.jsonl", lambda p: p.write_text('{"text": 1.5}'), "'text' is a JSON number"),
    ("boolean", "x.jsonl", lambda p: p.write_text('{"text": true}'), "'text' is a JSON boolean"),
    ("array", "x.jsonl", lambda p: p.write_text('{"text": ["a"]}'), "'text' is a JSON array"),
    ("object", "x.jsonl", lambda p: p.write_text('{"text": {}}'), "'text' is a JSON object"),
    ("a string", "x.jsonl", lambda p: p.write_text('"text"'), "a JSON string; expected an object"),
    ("no such key", "x.jsonl", lambda p: p.write_text('{"body": ""}'), "no key 'text'; the keys are body"),
    ("an empty object", "x.jsonl", lambda p: p.write_text("{}"), "the keys are none"),
    ("half a line", "x.jsonl", lambda p: p.write_text('{"text": "a"}\n{"te'), "line 2: not JSON"),
    ("one array", "x.jsonl", lambda p: p.write_text('[{"text": "a"}]'), "line 1: a JSON array"),
    ("deep", "x.jsonl", lambda p: p.write_text("[" * 200_000), "line 1: not JSON"),
    (
        "Latin-1",
        "x.jsonl",
        lambda p: p.write_bytes(b'{"text": "caf\xe9"}'),
        r"not UTF-8 at byte 13 \(0xe9\), in line 1",
    ),
    ("gzip without .gz", "x.jsonl", lambda p: p.write_bytes(gzip.compress(LINES)), "the file begins as gzip does"),
    ("too long", "x.jsonl", lambda p: p.write_bytes(b'\n{"text": "' + b"a" * 300_000 + b'"}'), "line 2: longer than"),
    # text
    ("UTF-16", "x.txt", lambda p: p.write_bytes("text".encode("utf-16") * 9), "begins as UTF-16 text does; convert"),
    ("UTF-16 without a mark", "x.txt", lambda p: p.write_bytes("text".encode("utf-16-le") * 9), "UTF-16 text"),
    ("cut character", "x.txt", lambda p: p.write_bytes("é".encode()[:1]), "not UTF-8 at byte 0"),
    ("too long a text", "x.txt", lambda p: p.write_bytes(b"a" * 300_000), r"x\.txt: longer than .*--split-on"),
    ("nothing", "x.txt", lambda p: p.write_bytes(b""), "holds no text"),
    ("unknown extension", "x.doc", lambda p: p.write_bytes(b"a"), "--format"),
    # archives
    ("truncated gzip", "x.jsonl.gz", lambda p: compressed(p, LINES, lambda b: b[:-9]), "truncated"),
    ("gzip with a tail", "x.jsonl.gz", lambda p: compressed(p, LINES, lambda b: b + b"tail"), "not valid gzip"),
    ("gzip with a wrong sum", "x.jsonl.gz", lambda p: compressed(p, LINES, lambda b: b[:-6] + b"xx" + b[-4:]), "valid"),
    ("empty gzip", "x.jsonl.gz", lambda p: p.write_bytes(b""), "is empty, which is not a valid compressed file"),
    ("no gzip", "x.jsonl.gz", lambda p: p.write_bytes(LINES), "not valid gzip"),
    ("truncated zstd", "x.jsonl.zst", lambda p: compressed(p, LINES, lambda b: b[:-5]), "truncated"),
    ("zstd with a tail", "x.jsonl.zst", lambda p: compressed(p, LINES, lambda b: b + b"tail tail"), "not valid zstd"),
    ("empty zstd", "x.jsonl.zst", lambda p: p.write_bytes(b""), "is empty, which is not a valid compressed file"),
    ("no zstd", "x.jsonl.zst", lambda p: p.write_bytes(LINES), "not valid zstd"),
    # Parquet
    ("null row", "x.parquet", lambda p: parquet(p, pyarrow.array(["a", None])), "row 1: column 'text' is null"),
    ("only nulls", "x.parquet", lambda p: parquet(p, pyarrow.nulls(2)), "row 0: column 'text' is null"),
    (
        "null category",
        "x.parquet",
        lambda p: parquet(p, pyarrow.array([None, "a"]).dictionary_encode()),
        "row 0: .*null",
    ),
    ("binary that is not UTF-8", "x.parquet", lambda p: parquet(p, pyarrow.array([b"a\xff"])), "not UTF-8 at byte 1"),
    ("numbers", "x.parquet", lambda p: parquet(p, pyarrow.array([1])), "holds int64; expected text"),
    ("lists", "x.parquet", lambda p: parquet(p, pyarrow.array([["a"]])), r"holds list<.*>; expected text"),
    ("timestamps", "x.parquet", lambda p: parquet(p, pyarrow.array([0], pyarrow.timestamp("s"))), "holds timestamp"),
    (
        "category of numbers",
        "x.parquet",
        lambda p: parquet(p, pyarrow.array([1]).dictionary_encode()),
        "holds int64",
    ),
    ("structs", "x.parquet", lambda p: parquet(p, pyarrow.array([{"a": "b"}])), "holds struct"),
    (
        "another column",
        "x.parquet",
        lambda p: parquet(p, pyarrow.array(["a"]), "body"),
        "no column 'text'; it has body",
    ),
    ("no Parquet", "x.parquet", lambda p: p.write_bytes(LINES), "not valid Parquet"),
    (
        "truncated Parquet",
        "x.parquet",
        truncated_parquet,
        "not valid Parquet",
    ),
    ("empty Parquet", "x.parquet", lambda p: p.write_bytes(b""), "not valid Parquet"),
    # no files
    ("a pipe", "x.txt", lambda p: os.mkfifo(p), "is a pipe; expected a regular file"),
    ("a socket", "x.txt", lambda p: bound_socket(p), "is a socket"),
    ("a device", "x.txt", lambda p: p.symlink_to("/dev/zero"), "is a device"),
    ("a link to nothing", "x.txt", lambda p: p.symlink_to("gone"), "is a link to gone, which is not there"),
    ("a loop of links", "x.txt", lambda p: p.symlink_to(p.name), r"cannot read .*x\.txt: Too many levels"),
    ("a folder", "x.txt", lambda p: p.mkdir(), "is a folder; give files or a glob"),
    ("nothing there", "x.txt", lambda p: None, "no file matches"),
]


def bound_socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


@pytest.mark.parametrize(("name", "make", "says"), [row[1:] for row in INPUTS], ids=[row[0] for row in INPUTS])
def test_malformed_inputs_of_tokenize(
    name: str,
    make: Make,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "MAX_RECORD_BYTES", 200_000)
    monkeypatch.setattr("gpt3_jax.data.records.MAX_RECORD_BYTES", 200_000)
    make(tmp_path / name)
    options = ["--tokenizer", "bytes", "--workers", "1", "--out", str(tmp_path / "out")]
    code, line = line_of(capsys, "tokenize", *options, str(tmp_path / name))
    assert code in (1, 2)
    assert line.startswith("gpt3-jax: error: ")
    assert re.search(says, line), line
    assert not (tmp_path / "out").exists()


# Documents that are left out.

GOOD = [f"document {i}" for i in range(40)]
BAD = [
    b'{"text": null}',
    b"{",
    b'{"body": 1}',
    b'{"text": 3}',
    b'{"text": "\xff"}',
    b"[]",
    b'{"text": "' + b"a" * 3000 + b'"}',
]


def mixed_lines() -> bytes:
    lines = [json.dumps({"text": text}).encode() for text in GOOD]
    for number, bad in enumerate(BAD):
        lines.insert(5 * number + 2, bad)
    return b"\n".join([*lines, b'{"text": ""}', b"", b'{"text": null}'])


class Interruption(Exception):
    pass


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_skipped_documents_are_counted_whatever_the_blocks_and_interruptions(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("documents", "records"):
        monkeypatch.setattr(f"gpt3_jax.data.{module}.MAX_RECORD_BYTES", 1000)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(gzip.compress(mixed_lines()) if suffix.endswith("gz") else mixed_lines())
    options = reading.Options(on_error="skip")
    expected = {"empty": 1, "no text": 1, "not JSON": 1, "not UTF-8": 1, "not an object": 1, "not text": 1, "null": 2}
    expected = dict(sorted({**expected, "too long": 1}.items()))
    results = []
    for number, block_bytes in enumerate((1, 64, 500, 1 << 20)):
        out = tmp_path / str(number)

        def stop(progress: object) -> None:
            raise Interruption

        with contextlib.suppress(Interruption):
            tokenize(
                [str(path)], out, "bytes", options=options, block_bytes=block_bytes, on_progress=stop, commit_seconds=0
            )
        source = tokenize([str(path)], out, "bytes", options=options, block_bytes=block_bytes)
        text = load_tokenizer("bytes").decode(source.read(0, source.n_tokens))
        assert text.split("<|endoftext|>")[:-1] == GOOD
        assert source.index.left_out == expected
        assert len(source.index.left_out_first) == 8 and "line 3: 'text' is null" in source.index.left_out_first[0]
        results.append({file.name: file.read_bytes() for file in sorted(out.iterdir())})
    assert all(result == results[0] for result in results)


def test_what_was_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.parquet"
    parquet(path, pyarrow.array(["a", None, "b", "", None]))
    arguments = [
        "--tokenizer",
        "bytes",
        "--workers",
        "1",
        "--on-error",
        "skip",
        "--out",
        str(tmp_path / "out"),
        str(path),
    ]
    code, line = line_of(capsys, "tokenize", *arguments)
    assert code == 0
    assert line.startswith("left out: 1 empty, 2 null; the first: ") and "row 1: column 'text' is null" in line
    assert main(["data", "inspect", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["left_out"] == {"empty": 1, "null": 2}
    parquet(path, pyarrow.nulls(3))
    arguments[-2] = str(tmp_path / "none")
    code, line = line_of(capsys, "tokenize", *arguments)
    assert code == 2 and "holds no text (left out: 3 null" in line


def test_a_text_that_the_tokenizer_cannot_take_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import base64

    (tmp_path / "r").write_bytes(b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256)))
    (tmp_path / "r.json").write_text('{"pattern": "(?:a|b)*(?=c)|."}')
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' + json.dumps({"text": "ab" * 1_000_000}) + "\n")
    arguments = [
        "--tokenizer",
        str(tmp_path / "r"),
        "--workers",
        "1",
        "--out",
        str(tmp_path / "o"),
        str(tmp_path / "x.jsonl"),
    ]
    code, line = line_of(capsys, "tokenize", *arguments)
    assert code == 2 and "x.jsonl, line 2: tokenizer" in line and "--on-error skip" in line
    shutil.rmtree(tmp_path / "o.partial")
    code, line = line_of(capsys, "tokenize", "--on-error", "skip", *arguments)
    assert code == 0 and "left out: 1 not tokenized" in line


# What the system refuses.


@pytest.fixture
def as_another_user() -> Iterator[tuple[Path, Callable[[], contextlib.AbstractContextManager[None]]]]:
    """A folder that every user can enter, and a context in which this process is not root, whom nothing is denied."""
    folder = Path(tempfile.mkdtemp(prefix="gpt3-jax-tests-"))
    folder.chmod(0o777)

    @contextlib.contextmanager
    def another() -> Iterator[None]:
        if os.geteuid():
            yield
            return
        os.setegid(65534)
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)

    yield folder, another
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o777)
    shutil.rmtree(folder)


Forbidden = tuple[Path, Callable[[], contextlib.AbstractContextManager[None]]]
DENIED = [
    "x/tokens-00001.bin", "x/documents.bin", "x/index.json", "x", "raw.bin", "m.bin", "m.idx", "text.txt",
    "lines.jsonl", "lines.jsonl.gz", "rows.parquet", "folder", "ranks",
]  # fmt: skip


@pytest.mark.parametrize("name", DENIED)
def test_what_may_not_be_read_is_named(
    name: str, as_another_user: Forbidden, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, another = as_another_user
    with another():
        shards(folder / "x")
        (folder / "raw.bin").write_bytes(raw("<u2"))
        megatron(folder)
        (folder / "text.txt").write_text("text")
        (folder / "lines.jsonl").write_bytes(LINES)
        (folder / "lines.jsonl.gz").write_bytes(gzip.compress(LINES))
        parquet(folder / "rows.parquet", PARQUET["string"])
        (folder / "folder").mkdir()
        (folder / "folder" / "a.txt").write_text("text")
        (folder / "ranks").write_text("YQ== 0")
        (folder / name).chmod(0o000)
        given = {"folder": "folder/*.txt", "ranks": "text.txt", "m.idx": "m.bin"}.get(name, name.partition("/")[0])
        if name[0] in "xrm" and name not in ("rows.parquet", "ranks"):
            code, line = line_of(capsys, "inspect", str(folder / given))
        else:
            tokenizer = str(folder / "ranks") if name == "ranks" else "bytes"
            arguments = ["--tokenizer", tokenizer, "--workers", "1", "--out", str(folder / "out"), str(folder / given)]
            code, line = line_of(capsys, "tokenize", *arguments)
    assert code == 1
    assert re.search(
        rf"cannot read {re.escape(str(folder / name))}[^ ]*: Permission denied; give this user the right", line
    )


def test_an_output_that_may_not_be_written_is_named(
    as_another_user: Forbidden, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, another = as_another_user
    (folder / "text.txt").write_text("text")
    with another():
        (folder / "closed").mkdir(mode=0o500)
        (folder / "dark").mkdir(mode=0o000)
        for name, says in (
            ("closed/out", "Permission denied"), ("dark/out", "Permission denied"), ("text.txt/out", "Not a directory"),
        ):  # fmt: skip
            arguments = [
                "--tokenizer",
                "bytes",
                "--workers",
                "1",
                "--out",
                str(folder / name),
                str(folder / "text.txt"),
            ]
            code, line = line_of(capsys, "tokenize", *arguments)
            assert code == 1 and name.partition("/")[0] in line and says in line, line


def test_a_full_disk_stops_with_a_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """A limit of the file size makes a write fail part of the way, as a full disk does."""
    import resource

    path = tmp_path / "x.jsonl"
    path.write_bytes(b"".join(json.dumps({"text": f"document {i}"}).encode() + b"\n" for i in range(3000)))
    tokenize([str(path)], tmp_path / "whole", "bytes", shard_tokens=30_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(RunError, match=r"writing .*out\.partial failed: File too large; free space .* resumes"):
            tokenize([str(path)], tmp_path / "out", "bytes", shard_tokens=30_000, block_bytes=999, commit_seconds=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "out").exists()
    tokenize([str(path)], tmp_path / "out", "bytes", shard_tokens=30_000)
    whole, after = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("whole", "out"))
    assert after == whole


def test_a_storage_that_loses_what_was_written_is_found_before_the_shards_count(tmp_path: Path) -> None:
    """/dev/null takes every write and holds nothing: no error comes from it."""
    (tmp_path / "x.txt").write_text("some text")
    writer = ShardWriter(tmp_path / "out", ByteTokenizer(), {})
    with writer:
        writer.append(np.arange(100), np.array([100]), 100)
        os.ftruncate(writer._tokens._file.fileno(), 50)
        with pytest.raises(RunError, match=r"tokens-00000\.bin does not hold what was written"):
            writer.finish()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["r[1]", "a*b", "q?", " blank ", "-dash", "~", "é日🎉", "%s{0}"])
def test_names_that_look_like_something_else(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / f"{name}.txt").write_text("text")
    for number, given in enumerate((folder / f"{name}.txt", folder / "*.txt")):
        source = tokenize([str(given)], folder / f"out{number}{name}", "bytes")
        assert open_source(SourceConfig(source.path)).n_tokens == 5
