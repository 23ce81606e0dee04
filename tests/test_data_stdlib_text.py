"""The quickstart's text: deterministic, whole, reused when intact and rebuilt when not."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest

from gpt3_jax.data.shards import ShardSource
from gpt3_jax.data.stdlib_text import HELDOUT_BYTES, StdlibText, compressors, prepare
from gpt3_jax.data.tokenizer import load_tokenizer
from gpt3_jax.errors import UserError


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> StdlibText:
    return prepare(tmp_path_factory.mktemp("stdlib") / "data")


def test_the_library_of_this_interpreter(text: StdlibText) -> None:
    train, heldout = ShardSource(text.train.path), ShardSource(text.heldout.path)
    assert (train.n_documents, heldout.n_documents) == (text.train_files, text.heldout_files)
    assert train.tokenizer_fingerprint == load_tokenizer("bytes").fingerprint
    tokens = heldout.read(0, heldout.n_tokens)
    assert tokens[tokens != 256].astype(np.uint8).tobytes() == text.heldout_bytes
    assert len(text.heldout_bytes) >= HELDOUT_BYTES
    share = heldout.n_tokens / (heldout.n_tokens + train.n_tokens)
    assert 0.03 < share < 0.08
    assert text.heldout_bytes.count(b"def ") > 500


def library(folder: Path) -> Path:
    for number in range(120):
        for name in (f"m{number:03d}.py", f"test/t{number}.py", f"site-packages/p{number}.py", f"n{number}.txt"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"# {name}\n" * 1200)
    (folder / "latin.py").write_bytes(b"# \xe9\n" * 100)
    return folder


def test_only_the_librarys_own_modules_each_in_one_half(tmp_path: Path) -> None:
    text = prepare(tmp_path / "data", library(tmp_path / "lib"))
    assert text.train_files + text.heldout_files == 120
    tokenizer = load_tokenizer("bytes")
    halves = []
    for config in (text.train, text.heldout):
        source = ShardSource(config.path)
        documents = tokenizer.decode(source.read(0, source.n_tokens)).split("<|endoftext|>")[:-1]
        halves.append([document.splitlines()[0] for document in documents])
    names = sorted(halves[0] + halves[1])
    assert names == [f"# m{number:03d}.py" for number in range(120)]
    assert halves[0] == sorted(halves[0])
    again = prepare(tmp_path / "other", tmp_path / "lib")
    assert ShardSource(again.train.path).fingerprint == ShardSource(text.train.path).fingerprint
    assert again.heldout_bytes == text.heldout_bytes


def test_reused_when_intact_rebuilt_when_damaged_or_changed(tmp_path: Path) -> None:
    root = library(tmp_path / "lib")
    text = prepare(tmp_path / "data", root)
    shard = Path(text.train.path) / "tokens-00000.bin"
    whole, made = shard.read_bytes(), shard.stat().st_ino
    prepare(tmp_path / "data", root)
    assert shard.stat().st_ino == made
    shard.write_bytes(b"x" + whole[1:])
    prepare(tmp_path / "data", root)
    assert shard.read_bytes() == whole
    (root / "m000.py").write_text("# another\n" * 5)
    (root / "m001.py").write_text("# another\n" * 5)
    changed = prepare(tmp_path / "data", root)
    tokens = [ShardSource(config.path) for config in (changed.train, changed.heldout)]
    assert sum(source.n_tokens for source in tokens) < len(whole) // 2 + 10**6
    assert shard.read_bytes() != whole
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["heldout", "train"]


def test_too_little_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("pass")
    with pytest.raises(UserError, match="4 bytes of Python source"):
        prepare(tmp_path / "data", tmp_path)


def test_compressors_in_bits_per_byte() -> None:
    text = b"to be or not to be\n" * 1000
    result = compressors(text)
    assert result["gzip -9"] == 8 * len(gzip.compress(text, 9)) / len(text)
    assert result["xz -9"] == 8 * len(lzma.compress(text, preset=9)) / len(text)
    assert 0 < result["xz -9"] < 0.2
