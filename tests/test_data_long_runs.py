"""Runs that are long for tiktoken's regular expression: cut where the tokens stay what tiktoken gives on the whole."""

from __future__ import annotations

import base64
import itertools
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiktoken

from gpt3_jax.data.long_runs import LETTER, NUMBER, OTHER, SPACE, encode_piece, segments
from gpt3_jax.data.tokenizer import GPT2_PATTERN, BpeTokenizer, character_classes, load_tokenizer
from gpt3_jax.errors import UserError

# Merges that overlap, so that where a run is cut matters: tokens of 2, 4, 8 blanks, words with and without a blank.
WORDS = [
    "the",
    "ing",
    "ab",
    "abab",
    "aaaa",
    "haha",
    "ACGT",
    "GATT",
    "00",
    "000",
    "12",
    "123",
    "====",
    "-=",
    "'s",
    "'ll",
]
WORDS += ["\n\n\n\n", "\t\t", "éé", "日本", "語"]
MERGES = sorted(
    {piece[:n] for word in WORDS for piece in (word.encode(), b" " + word.encode()) for n in range(2, len(piece) + 1)}
    | {b" " * n for n in (2, 4, 8, 16)}
    | {b"=" * n for n in (2, 4, 8, 16, 32)},
    key=lambda piece: (len(piece), piece[::-1]),
)
# R50k_base's own pattern in tiktoken, which must cut as GPT-2's does.
FAST_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def write_ranks(path: Path) -> Path:
    pieces = [bytes([i]) for i in range(256)] + MERGES
    path.write_bytes(b"".join(base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces)))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BpeTokenizer:
    loaded = load_tokenizer(str(write_ranks(tmp_path_factory.mktemp("ranks") / "ranks")))
    assert isinstance(loaded, BpeTokenizer)
    return loaded


@pytest.fixture(scope="module")
def plain(tokenizer: BpeTokenizer) -> Callable[[str], np.ndarray]:
    """tiktoken itself, with the pattern that takes the longest runs."""
    ranks = {bytes([i]): i for i in range(256)} | {piece: 256 + i for i, piece in enumerate(MERGES)}
    encoding = tiktoken.Encoding("plain", pat_str=FAST_PATTERN, mergeable_ranks=ranks, special_tokens={})
    return lambda text: encoding.encode_to_numpy(text, disallowed_special=())


@pytest.mark.parametrize("run", [3, 4, 7])
def test_parts_of_a_text_are_encoded_as_the_whole(run: int) -> None:
    """Every order of the classes, long and short: with `run` this small, random texts are full of long runs."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(str(write_ranks(Path(folder) / "ranks")))
    assert isinstance(tokenizer, BpeTokenizer)
    rng = random.Random(run)
    alphabet = ["a", "b", "s", "t", "ll", "ve", "'", "''", " ", "\n", "\t", "\r\n", "\u00a0", "\u3000"]
    alphabet += ["1", "٣", "½", "é", "日", "!", "🎉", "\u0301", "ß", "=", "-", "\x1c", "\x85", "\u200b"]
    for _ in range(4000):
        few = rng.sample(alphabet, rng.randrange(1, 6))
        text = "".join(rng.choice(few) * rng.choice([1, 1, 2, 3, 5, 9]) for _ in range(rng.randrange(1, 40)))
        parts = list(segments(text, character_classes(), run))
        assert "".join(part for part, _ in parts) == text
        ids = [tokenizer._merge(p) if whole else tokenizer._encode(tokenizer._encoding, p) for p, whole in parts]
        assert np.concatenate(ids).tolist() == tokenizer._encode(tokenizer._encoding, text).tolist(), repr(text)


def test_every_neighbourhood_of_a_long_run(tokenizer: BpeTokenizer) -> None:
    around = ["", " ", "  ", "\n", "\n ", " \n", "'", " '", "!'", "a'", "1'", "\n'", "a", "1", "!", "s", "ll"]
    for before, middle, after in itertools.product(
        around, ["sssss", "lllll", "55555", "!!!!!", "     ", "\n\n\n\n"], around
    ):
        text = before + middle + after
        ids = [
            tokenizer._merge(p) if whole else tokenizer._encode(tokenizer._encoding, p)
            for p, whole in segments(text, character_classes(), 3)
        ]
        assert np.concatenate(ids).tolist() == tokenizer._encode(tokenizer._encoding, text).tolist(), repr(text)


PIECES: dict[str, Callable[[random.Random, int], str]] = {
    "blanks": lambda rng, n: " " * n,
    "one letter": lambda rng, n: "a" * n,
    "two letters": lambda rng, n: "ab" * (n // 2),
    "words": lambda rng, n: "haha" * (n // 4),
    "DNA": lambda rng, n: "".join(rng.choices("ACGT", k=n)),
    "digits": lambda rng, n: "".join(rng.choices("0123", k=n)),
    "zeros": lambda rng, n: "0" * n,
    "rules": lambda rng, n: "=" * n,
    "dashes": lambda rng, n: "-=" * (n // 2),
    "spaces": lambda rng, n: "".join(rng.choices(" \t\n", k=n)),
    "Chinese": lambda rng, n: "".join(rng.choices("日本語中文", k=n)),
    "accents": lambda rng, n: "".join(rng.choices("éaß", k=n)),
    "emoji": lambda rng, n: "".join(rng.choices("🎉🎈👩", k=n)),
}


@pytest.mark.parametrize("kind", PIECES)
def test_a_piece_in_windows_is_merged_as_the_whole(kind: str, tokenizer: BpeTokenizer) -> None:
    rng = random.Random(0)
    for window in (5, 8, 13, 64, 101, 257):  # the first are shorter than tokens: borders that do not hold
        for _ in range(15):
            piece = PIECES[kind](rng, rng.randrange(window + 1, 1500))
            got = encode_piece(piece, tokenizer._merge, tokenizer._lengths, window)
            assert got.tolist() == tokenizer._merge(piece).tolist(), (window, len(piece))


@pytest.mark.parametrize("kind", PIECES)
def test_near_the_longest_that_tiktoken_takes(
    kind: str, tokenizer: BpeTokenizer, plain: Callable[[str], np.ndarray]
) -> None:
    text = "so 's\n" + PIECES[kind](random.Random(0), 50_000) + " end"
    assert tokenizer.encode_array(text).tolist() == plain(text).tolist()


@pytest.mark.parametrize("end", ["", "x", " x", "\n", "!"])
def test_a_million_blanks(end: str, tokenizer: BpeTokenizer) -> None:
    """tiktoken alone: "Max stack size exceeded for backtracking". All blanks but the last make tokens of 16."""
    ids = tokenizer.encode_array("a" + " " * 1_000_001 + end)
    blanks = 1_000_001 - (end not in ("", "\n"))
    if end == "\n":  # one run of spaces to the end
        assert tokenizer.decode(ids) == "a" + " " * 1_000_001 + "\n"
        return
    sixteen = tokenizer.encode(" " * 16)
    assert len(sixteen) == 1
    assert ids[1 : 1 + blanks // 16].tolist() == sixteen * (blanks // 16)
    assert tokenizer.decode(ids) == "a" + " " * 1_000_001 + end


def test_classes_are_those_of_the_pattern(tokenizer: BpeTokenizer) -> None:
    classes = character_classes()
    expected = {"a": LETTER, "é": LETTER, "日": LETTER, "1": NUMBER, "½": NUMBER, "٣": NUMBER, "!": OTHER, "\0": OTHER}
    expected |= {" ": SPACE, "\n": SPACE, "\x85": SPACE, "\u3000": SPACE, "\x1c": OTHER, "\u200b": OTHER, "🎉": OTHER}
    assert {character: int(classes[ord(character)]) for character in expected} == expected


def test_a_pattern_of_ones_own_is_not_cut_but_its_failure_told(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"pattern": "(?:a|b)*(?=c)|."}')
    tokenizer = load_tokenizer(str(write_ranks(tmp_path / "r")))
    assert GPT2_PATTERN not in "(?:a|b)*(?=c)|."
    with pytest.raises(UserError, match="cannot cut a text of 2,000,000 characters"):
        tokenizer.encode("ab" * 1_000_000)
