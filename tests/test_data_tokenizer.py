"""Tokenizers: bytes, rank files, and what is said when one cannot be had."""

from __future__ import annotations

import base64
import itertools
import json
import random
import re
from pathlib import Path

import pytest

from gpt3_jax.data.tokenizer import load_tokenizer
from gpt3_jax.errors import UserError

MERGES = [b"th", b"the", b" the", b"in", b"ing", b" c", b" ca", b"at", b" cat", b"\xc3\xa9", b"!!"]
TEXTS = ("", "the cat in the hat", "sing!!! thé  \n\n cat's", "<|endoftext|> is text", "日本 🎉", "a" * 500)


def write_ranks(path: Path, merges: list[bytes] = MERGES) -> Path:
    pieces = [bytes([i]) for i in range(256)] + merges
    path.write_bytes(b"".join(base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces)))
    return path


def plain_bpe(text: str, merges: list[bytes]) -> list[int]:
    """GPT-2's merging, said slowly: in each word, join the adjacent pair of lowest rank until none has one."""
    ranks = {bytes([i]): i for i in range(256)} | {piece: 256 + i for i, piece in enumerate(merges)}
    # Python's re has no \p{L}; for this test's texts \w without digits and underscore is the same.
    words = re.findall(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+", text)
    ids = []
    for word in words:
        parts = [bytes([b]) for b in word.encode()]
        while True:
            pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]
            if not pairs:
                break
            _, i = min(pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def test_bytes_are_bytes_and_end_of_text() -> None:
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.n_vocab, tokenizer.eot) == (257, 256)
    for text in TEXTS:
        assert tokenizer.encode(text) == list(text.encode())
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([104, 105, 256]) == "hi<|endoftext|>"
    assert tokenizer.decode([0xC3]) == "\ufffd"
    assert tokenizer.token_bytes([104, 256, 105]) == 2


def test_rank_file_encodes_like_the_algorithm(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(write_ranks(tmp_path / "small.tiktoken")))
    assert (tokenizer.n_vocab, tokenizer.eot) == (256 + len(MERGES) + 1, 256 + len(MERGES))
    words = random.Random(0)
    texts = [*TEXTS, *("".join(words.choices("the cating!é \n'", k=80)) for _ in range(200))]
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == plain_bpe(text, MERGES)
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes([*ids, tokenizer.eot]) == len(text.encode())


@pytest.mark.parametrize("kind", ["bytes", "ranks"])
def test_lone_surrogates_become_the_replacement_character(kind: str, tmp_path: Path) -> None:
    name = "bytes" if kind == "bytes" else str(write_ranks(tmp_path / "r"))
    tokenizer = load_tokenizer(name)
    assert tokenizer.decode(tokenizer.encode(json.loads('"a\\ud800b \\ud83c\\udf89"'))) == "a\ufffdb 🎉"


def test_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    one = load_tokenizer(str(write_ranks(tmp_path / "one")))
    assert load_tokenizer(str(write_ranks(tmp_path / "two"))).fingerprint == one.fingerprint
    assert load_tokenizer(str(write_ranks(tmp_path / "three", MERGES[:-1]))).fingerprint != one.fingerprint
    assert load_tokenizer("bytes").fingerprint != one.fingerprint
    settings = tmp_path / "two.json"
    settings.write_text('{"end_of_text": 999}')
    moved = load_tokenizer(str(tmp_path / "two"))
    assert (moved.eot, moved.n_vocab) == (999, 1000)
    assert moved.fingerprint != one.fingerprint
    assert moved.decode([998, 999]) == "<|endoftext|>"
    settings.write_text(json.dumps({"pattern": r"\S+|\s+"}))
    other = load_tokenizer(str(tmp_path / "two"))
    assert other.fingerprint != one.fingerprint
    assert other.encode(" the") != one.encode(" the")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"not base64 at all\n", "line 1"),
        (b"YQ== 0\nYQ== 1\n", "line 2"),
        (b"YQ== 0\n", "no rank for byte 0"),
        (b"", "no rank for byte 0"),
    ],
)
def test_malformed_rank_files_are_refused(text: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad"
    path.write_bytes(text)
    with pytest.raises(UserError, match=says):
        load_tokenizer(str(path))


@pytest.mark.parametrize(
    "settings", ["[]", '{"patern": "x"}', "{", '{"end_of_text": 3}', '{"pattern": "("}', '{"end_of_text": "x"}']
)
def test_malformed_settings_are_refused(settings: str, tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "r")
    (tmp_path / "r.json").write_text(settings)
    with pytest.raises(UserError, match=r"r\.json"):
        load_tokenizer(str(path))


def test_without_a_network_the_error_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    # Nothing listens on port 9 (discard) of this machine, so every download fails at once.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="TIKTOKEN_CACHE_DIR"):
        load_tokenizer("r50k_base")


def test_unknown_names_and_ids_are_refused() -> None:
    with pytest.raises(UserError, match="'r50k-base' is neither"):
        load_tokenizer("r50k-base")
    for bad in ([257], [-1]):
        with pytest.raises(UserError, match="ids are 0 to 256"):
            load_tokenizer("bytes").decode(bad)
