"""Text to shards: every format, any number of workers, any interruption, one result."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from gpt3_jax.data import writer as writing
from gpt3_jax.data.documents import Cursor, Options, blocks, find_inputs
from gpt3_jax.data.records import texts
from gpt3_jax.data.shards import ShardSource
from gpt3_jax.data.tokenize import Progress, tokenize
from gpt3_jax.data.tokenizer import load_tokenizer
from gpt3_jax.errors import RunError, UserError

ROOT = Path(__file__).parents[1]


def some_documents(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices('abc dé\n日🎉"\\', k=rng.randrange(0, 60))) for _ in range(count)]


def write_jsonl(path: Path, documents: list[str]) -> Path:
    data = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(documents)).encode()
    if path.suffix == ".gz":
        # Two members, as `cat a.gz b.gz` makes.
        path.write_bytes(gzip.compress(data[:100]) + gzip.compress(data[100:]))
    elif path.suffix == ".zst":
        compressor = zstandard.ZstdCompressor()
        path.write_bytes(compressor.compress(data[:100]) + compressor.compress(data[100:]))
    else:
        path.write_bytes(data)
    return path


def read_back(source: ShardSource) -> list[str]:
    tokenizer = load_tokenizer("bytes")
    tokens = source.read(0, source.n_tokens)
    ends = np.flatnonzero(tokens == tokenizer.eot)
    pieces = np.split(tokens, ends + 1)
    assert len(pieces[-1]) == 0, "the last document has no end-of-text"
    starts = [0, *(ends + 1)][: len(ends)]
    assert [source.document_at(int(start)) for start in starts] == list(range(len(starts)))
    assert [source.document_at(int(end)) for end in ends] == list(range(len(starts)))
    return [tokenizer.decode(piece[:-1]) for piece in pieces[:-1]]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt", ".txt.gz"])
@pytest.mark.parametrize("shard_tokens", [1000, 2**20])
def test_documents_come_back_from_every_format(suffix: str, shard_tokens: int, tmp_path: Path) -> None:
    documents = some_documents(300)
    path = tmp_path / f"data{suffix}"
    options = Options(split_on="<|endoftext|>")
    if suffix == ".parquet":
        table = pyarrow.table({"id": range(300), "text": documents})
        pyarrow.parquet.write_table(table, path, row_group_size=70)
    elif suffix.startswith(".txt"):
        text = "<|endoftext|>".join(documents).encode()
        path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    else:
        write_jsonl(path, documents)
    source = tokenize(
        [str(path)], tmp_path / "out", "bytes", options=options, shard_tokens=shard_tokens, block_bytes=500
    )
    kept = [document for document in documents if document]
    assert read_back(source) == kept
    assert source.n_documents == len(kept) < 300
    assert source.index.text_bytes == sum(len(document.encode()) for document in kept)
    assert source.n_tokens == source.index.text_bytes + len(kept)
    assert source.index.max_token == 256
    assert len(source.index.shards) == -(-source.n_tokens // shard_tokens)
    assert not (tmp_path / "out.partial").exists()
    source.verify()


def test_text_files_are_one_document_each_in_the_order_of_the_glob(tmp_path: Path) -> None:
    for name, text in (("b.txt", "second\n\nstill"), ("a.txt", "\ufefffirst <|endoftext|>"), ("c.txt", "")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    source = tokenize([str(tmp_path / "*.txt")], tmp_path / "out", "bytes")
    assert read_back(source) == ["first <|endoftext|>", "second\n\nstill"]


@pytest.mark.parametrize("separator", ["\n\n", "aba", "\n", "<|endoftext|>"])
def test_documents_do_not_depend_on_where_blocks_are_cut(separator: str, tmp_path: Path) -> None:
    rng = random.Random(1)
    text = "".join(rng.choices(["\n", "a", "b", "<|endoftext|>"], k=600))
    (tmp_path / "x.txt").write_text(text)
    inputs = find_inputs([str(tmp_path / "x.txt")], None)
    options = Options(split_on=separator)
    expected = [document for document in text.split(separator) if document]
    for block_bytes in (1, 2, 3, 7, 50, 10_000):
        whole = list(blocks(inputs, options, Cursor(), block_bytes))
        assert [t for block in whole for t in texts(block, options) if t] == expected
        middle = whole[len(whole) // 2]
        rest = [t for block in blocks(inputs, options, middle.end, 5) for t in texts(block, options) if t]
        done = [t for block in whole[: len(whole) // 2 + 1] for t in texts(block, options) if t]
        assert done + rest == expected


def inputs_of_every_kind(folder: Path) -> list[str]:
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", some_documents(400, 1))
    write_jsonl(folder / "b.jsonl.gz", some_documents(300, 2))
    write_jsonl(folder / "c.jsonl.zst", some_documents(300, 3))
    table = pyarrow.table({"text": some_documents(200, 4)})
    pyarrow.parquet.write_table(table, folder / "d.parquet", row_group_size=64)
    (folder / "e.txt").write_text("a single document")
    return [str(folder / "*")]


def test_workers_and_block_sizes_leave_no_trace(tmp_path: Path) -> None:
    inputs = inputs_of_every_kind(tmp_path / "in")
    results = []
    for number, (workers, block_bytes) in enumerate(((1, 2**20), (1, 300), (2, 1000))):
        out = tmp_path / f"out{number}"
        tokenize(inputs, out, "bytes", workers=workers, block_bytes=block_bytes, shard_tokens=4096)
        results.append(contents(out))
    assert len(results[0]) > 5
    assert results[0] == results[1] == results[2]


def test_reading_goes_on_from_any_block_of_any_format(tmp_path: Path) -> None:
    inputs = find_inputs(inputs_of_every_kind(tmp_path / "in"), None)
    options = Options()
    whole = list(blocks(inputs, options, Cursor(), 400))
    expected = [list(texts(block, options)) for block in whole]
    assert {block.path[-4:] for block in whole} == {"sonl", "l.gz", ".zst", "quet", ".txt"}
    assert sum(block.kind == "parquet" for block in whole) > 8, "row groups are not cut"
    for number in range(0, len(whole), 3):
        rest = [text for block in blocks(inputs, options, whole[number].end, 400) for text in texts(block, options)]
        assert rest == sum(expected[number + 1 :], [])  # noqa: RUF017


class Interruption(Exception):
    pass


def test_interrupted_anywhere_it_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    inputs = inputs_of_every_kind(tmp_path / "in")
    tokenize(inputs, tmp_path / "whole", "bytes", block_bytes=500, shard_tokens=4096)
    out = tmp_path / "out"
    reached: list[int] = []
    for stop_after in (1, 7, 20, 3, 2, 11):
        calls = 0

        def stop(progress: Progress, limit: int = stop_after) -> None:
            nonlocal calls
            calls += 1
            reached.append(progress.tokens)
            if calls == limit:
                raise Interruption

        with pytest.raises(Interruption):
            tokenize(inputs, out, "bytes", block_bytes=500, shard_tokens=4096, commit_seconds=0, on_progress=stop)
        assert not out.exists()
        # What a crash in the middle of a write leaves behind the last commit.
        partial = tmp_path / "out.partial"
        for path in (partial / "documents.bin", max(partial.glob("tokens-000[0-8]*.bin"))):
            path.write_bytes(path.read_bytes() + b"torn")
        (partial / "tokens-00099.bin").write_bytes(b"stray")
    assert reached == sorted(set(reached)), "work that was committed was done again"
    tokenize(inputs, out, "bytes", block_bytes=9999, shard_tokens=4096)
    assert contents(out) == contents(tmp_path / "whole")
    assert {name.split("-")[0] for name in contents(out)} == {"tokens", "documents.bin", "index.json"}


def test_killed_with_sigkill_it_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", some_documents(20_000))
    tokenize([str(path)], tmp_path / "whole", "bytes", shard_tokens=30_000)
    program = textwrap.dedent(
        """
        import sys, time
        from gpt3_jax.data.tokenize import tokenize

        if __name__ == "__main__":
            tokenize(
                [sys.argv[1]], sys.argv[2], "bytes", workers=2, block_bytes=2000, shard_tokens=30_000,
                commit_seconds=0, on_progress=lambda progress: time.sleep(0.005),
            )
        """
    )
    script = tmp_path / "run.py"
    script.write_text(program)
    out, journal = tmp_path / "out", tmp_path / "out.partial" / writing.JOURNAL
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    seen = 0
    for _ in range(2):
        process = subprocess.Popen([sys.executable, str(script), str(path), str(out)], env=environment)
        children: list[int] = []
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if journal.is_file() and (tokens := json.loads(journal.read_text())["n_tokens"]) > seen + 40_000:
                seen = tokens
                break
            assert process.poll() is None, "finished before it could be killed"
            time.sleep(0.01)
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists()
        while any(running(pid) for pid in children) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(running(pid) for pid in children), "workers outlived the process that started them"
    tokenize([str(path)], out, "bytes", shard_tokens=30_000)
    assert contents(out) == contents(tmp_path / "whole")


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_same_command_again_does_nothing_another_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", some_documents(50))
    out = tmp_path / "out"
    tokenize([str(path)], out, "bytes")
    (out / writing.JOURNAL).write_text("what a kill after the rename leaves")
    before = contents(out)
    tokenize([str(path)], out, "bytes")
    del before[writing.JOURNAL]
    assert contents(out) == before
    with pytest.raises(UserError, match="already holds shards"):
        tokenize([str(path)], out, "bytes", shard_tokens=100)
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("")
    with pytest.raises(UserError, match="not an empty folder"):
        tokenize([str(path)], other, "bytes")


def test_partial_work_of_changed_inputs_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", some_documents(50))

    def stop(progress: Progress) -> None:
        raise Interruption

    with pytest.raises(Interruption):
        tokenize([str(path)], tmp_path / "out", "bytes", block_bytes=100, commit_seconds=0, on_progress=stop)
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match="inputs differ"):
        tokenize([str(path)], tmp_path / "out", "bytes")
    with pytest.raises(UserError, match="did not finish"):
        ShardSource(tmp_path / "out")


def test_two_writers_of_one_folder_are_refused(tmp_path: Path) -> None:
    with (
        writing.ShardWriter(tmp_path / "out", load_tokenizer("bytes"), {}),
        pytest.raises(UserError, match="another process"),
    ):
        writing.ShardWriter(tmp_path / "out", load_tokenizer("bytes"), {})


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    # /dev/full takes the place of the first shard: every write to it fails with ENOSPC.
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "tokens-00000.bin").symlink_to("/dev/full")
    path = write_jsonl(tmp_path / "a.jsonl", some_documents(50))
    with pytest.raises(RunError, match=r"out\.partial failed"):
        tokenize([str(path)], tmp_path / "out", "bytes")
    assert not (tmp_path / "out").exists()


BAD_LINES = [
    (b'{"text": "ok"}\n{"txt": "b"}\n', "line 2: no key 'text'; the keys are txt"),
    (b'{"text": 3}\n', "line 1: 'text' is a JSON number"),
    (b'\n{"text": "ok"}\n["text"]\n', "line 3: a JSON array"),
    (b'{"text": "ok"}\n{"text": \n', "line 2: not JSON"),
    (b'{"text": "ok"}\n{"text": "\xff"}\n', "not UTF-8 at byte 25"),
]


@pytest.mark.parametrize(("data", "says"), BAD_LINES)
@pytest.mark.parametrize("workers", [1, 2])
def test_bad_lines_are_named(data: bytes, says: str, workers: int, tmp_path: Path) -> None:
    if workers == 2 and says != BAD_LINES[0][1]:
        workers = 1  # one worker's error on its way to this process is enough: starting processes is slow
    (tmp_path / "bad.jsonl").write_bytes(data)
    with pytest.raises(UserError, match=says):
        tokenize([str(tmp_path / "bad.jsonl")], tmp_path / "out", "bytes", workers=workers, block_bytes=1)
    assert not (tmp_path / "out").exists()


def test_bytes_that_are_not_utf8_can_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"caf\xe9 ol\xe9")
    with pytest.raises(UserError, match=r"x\.txt is not UTF-8 at byte 3 \(0xe9\).*--errors replace"):
        tokenize([str(tmp_path / "x.txt")], tmp_path / "out", "bytes")
    source = tokenize([str(tmp_path / "x.txt")], tmp_path / "other", "bytes", options=Options(errors="replace"))
    assert read_back(source) == ["caf\ufffd ol\ufffd"]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_truncated_and_flipped_archives_are_named(suffix: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / f"a{suffix}", some_documents(500))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(RunError, match="truncated"):
        tokenize([str(path)], tmp_path / "out", "bytes")
    flipped = bytearray(whole)
    flipped[0] ^= 255
    path.write_bytes(flipped)
    with pytest.raises(RunError, match="not valid"):
        tokenize([str(path)], tmp_path / "flipped", "bytes")


def test_unusable_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bad.parquet").write_text("not parquet")
    (tmp_path / "x.txt").write_text("text")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), tmp_path / "p.parquet")
    cases = [
        (["*.none"], Options(), "no file matches"),
        (["."], Options(), "is a folder"),
        (["x.csv"], Options(), "--format"),
        (["x.txt", "*.txt"], Options(), "given twice"),
        (["empty.txt"], Options(), "holds no text"),
        (["p.parquet"], Options(), "no column 'text'; it has body, n"),
        (["p.parquet"], Options(text_key="n"), "holds int64"),
        (["bad.parquet"], Options(), "not valid Parquet"),
    ]
    for names, options, says in cases:
        with pytest.raises((UserError, RunError), match=says):
            tokenize([str(tmp_path / name) for name in names], tmp_path / "out", "bytes", options=options)
        assert not (tmp_path / "out").exists()
    assert read_back(tokenize([str(tmp_path / "x.csv")], tmp_path / "csv", "bytes", options=Options(kind="text")))
