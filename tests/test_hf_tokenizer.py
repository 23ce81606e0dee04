"""Hugging Face's tokenizer files: the tokens that transformers gives, and everything that is refused."""

from __future__ import annotations

import json
import random
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt3_jax.data.hf_tokenizer import read_bpe
from gpt3_jax.data.tokenizer import load_tokenizer
from gpt3_jax.errors import UserError

CHARACTERS = "abcdefgh  \n\t'ing THE é日本🎉１²٣_!?—"
EVERY = [chr(code) for code in range(0x3000) if not 0xD800 <= code < 0xE000]


def texts(seed: int, count: int) -> list[str]:
    """Random texts of few characters, so that merges apply, and of any of the first planes."""
    rng = random.Random(seed)
    few = ["".join(rng.choices(CHARACTERS, k=rng.randrange(1, 200))) for _ in range(count)]
    return few + ["".join(rng.choices(EVERY, k=50)) for _ in range(count)]


def trained(folder: Path, seed: int, tokens: int) -> Any:
    """A BPE of Hugging Face's trained on random texts. Ids: end-of-text, the bytes, the merges."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra hf")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(
        texts(seed, 100), vocab_size=tokens, min_frequency=1, special_tokens=["<|endoftext|>"], show_progress=False
    )
    folder.mkdir(exist_ok=True)
    made.save_model(str(folder))
    return made


@pytest.mark.hf
@pytest.mark.parametrize(("seed", "tokens"), [(1, 300), (2, 1500)])
def test_the_tokens_are_those_of_transformers(tmp_path: Path, seed: int, tokens: int) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    trained(tmp_path, seed, tokens)
    theirs = transformers.GPT2TokenizerFast(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    ours = load_tokenizer(str(tmp_path))
    assert (ours.n_vocab, ours.eot) == (tokens, 0) == (len(theirs), theirs.eos_token_id)
    for text in texts(10 + seed, 500):
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == text
    long = "ab" * 5000 + " " * 3000 + "the"  # in parts, by the same merges
    assert ours.encode(long) == theirs(long)["input_ids"]

    theirs.save_pretrained(tmp_path / "one file")
    assert not (tmp_path / "one file" / "vocab.json").exists()
    assert load_tokenizer(str(tmp_path / "one file")).fingerprint == ours.fingerprint


def bytes_vocabulary() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return {characters[byte]: byte for byte in range(256)}


def write(folder: Path, merges: list[str], tokens: dict[str, int] | None = None, **more: Any) -> Path:
    """A tokenizer.json: bytes by their value, then each merge's token, then `tokens` and end-of-text."""
    vocabulary = bytes_vocabulary()
    for merge in merges:
        vocabulary.setdefault(merge.replace(" ", ""), len(vocabulary))
    vocabulary |= tokens or {}
    values: dict[str, Any] = {
        "added_tokens": [{"id": len(vocabulary), "content": "<|endoftext|>", "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }
    for key, value in more.items():
        section, _, name = key.partition("__")
        values[section] = {**(values[section] or {}), name: value} if name else value
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(values))
    return folder


def test_the_rank_file_with_the_same_tokens_is_the_same_tokenizer(tmp_path: Path) -> None:
    merges = ["t h", "th e", "Ġ the", "i n"]
    pieces = [bytes([i]) for i in range(256)] + [b"th", b"the", b" the", b"in"]
    (tmp_path / "ranks").write_bytes(b"".join(b"%s %d\n" % (b64encode(piece), i) for i, piece in enumerate(pieces)))
    ours = load_tokenizer(str(write(tmp_path / "hf", merges)))
    assert ours.fingerprint == load_tokenizer(str(tmp_path / "ranks")).fingerprint
    as_lists = write(tmp_path / "lists", merges, model__merges=[merge.split(" ") for merge in merges])
    assert load_tokenizer(str(as_lists)).fingerprint == ours.fingerprint


def test_a_token_that_no_merge_makes_is_only_decoded() -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert_unmade_tokens_are_only_decoded(Path(folder))


def assert_unmade_tokens_are_only_decoded(tmp_path: Path) -> None:
    """`b c` comes first, so `abc` is made of `a` and `bc` and never of `ab` and `c`; nothing makes `xyz`."""
    folder = write(tmp_path / "hf", ["b c", "a b", "ab c"], {"xyz": 300})
    bpe = read_bpe(folder)
    assert b"abc" not in bpe.ranks and bpe.others[300] == b"xyz"
    ours = load_tokenizer(str(folder))
    assert ours.encode("abc ab xyz") == [ord("a"), 256, ord(" "), 257, *b" xyz"]
    assert ours.decode([300, ours.eot]) == "xyz<|endoftext|>"
    np.testing.assert_array_equal(ours.encode_array("abc" * 3000), [ord("a"), 256] * 3000)
    without = load_tokenizer(str(write(tmp_path / "without", ["b c", "a b"], {"xyz": 300, "abc": 258})))
    assert without.fingerprint == ours.fingerprint


def test_end_of_text_is_the_one_that_the_settings_name(tmp_path: Path) -> None:
    write(tmp_path, ["a b"], {"</s>": 257, "<pad>": 258})
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}')
    assert load_tokenizer(str(tmp_path)).eot == 257
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    with pytest.raises(UserError, match="has no token '<end>'; expected the end-of-text token"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model__type": "Unigram"}, "model.type is 'Unigram'; expected 'BPE'"),
        ({"model__ignore_merges": True}, "model.ignore_merges is True"),
        ({"model__end_of_word_suffix": "</w>"}, "model.end_of_word_suffix is '</w>'"),
        ({"model__vocab": {"a": 0}}, "needs the token 'b', which the vocabulary lacks"),
        ({"model__vocab": {"a": -1}}, "has no vocabulary"),
        ({"model__vocab": {"a": 0, "b": 1, "ab": 2}}, "has no token for byte"),
        ({"model__vocab": {**bytes_vocabulary(), "ab": 3}}, "gives one id to two tokens"),
        ({"model__merges": ["a b c"]}, "merge 'a b c' is not two tokens"),
        ({"model__merges": "a b"}, "model.merges is missing or no list"),
        ({"model": []}, "has no model"),
        ({"normalizer": {"type": "NFC"}}, "normalizer is NFC; expected null"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer is Whitespace; expected ByteLevel"),
        ({"pre_tokenizer__add_prefix_space": True}, "add_prefix_space is true"),
        ({"pre_tokenizer__use_regex": False}, "pre_tokenizer is ByteLevel; expected ByteLevel with GPT-2's pattern"),
        ({"added_tokens": [{"id": 300, "content": "lol"}]}, "adds a token 'lol' that is not special"),
        ({"added_tokens": [{"content": "x", "special": True}]}, "malformed added tokens"),
        ({"added_tokens": []}, r"has no token '<\|endoftext\|>'"),
    ],
)
def test_other_tokenizers_are_refused_in_one_line(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(str(write(tmp_path, ["a b"], **changed)))
    assert "\n" not in str(caught.value)


OTHERS: tuple[Any, ...] = (
    None,
    5,
    -1.5,
    True,
    "ByteLevel",
    "a\nb",
    "\ud800",
    [],
    [5],
    [[]],
    {},
    {"a": 5},
    {"content": 5},
)
SETTINGS = {"eos_token": {"content": "<|endoftext|>"}, "add_prefix_space": False}


def changes(values: Any) -> Iterator[tuple[str, Any]]:
    """Copies of nested values in which one part is missing or another thing; of vocabularies only the first token."""
    parts = list(values.items()) if isinstance(values, dict) else list(enumerate(values))
    for key, part in parts[:1] if len(parts) > 200 else parts:

        def copy(*given: Any, key: Any = key) -> Any:
            if isinstance(values, dict):
                return {k: v for k, v in values.items() if k != key} | ({key: given[0]} if given else {})
            return [*values[:key], *given, *values[key + 1 :]]

        yield f"{key} missing", copy()
        yield from ((f"{key} {other!r}", copy(other)) for other in OTHERS)
        if isinstance(part, (dict, list)):
            yield from ((f"{key}.{what}", copy(inner)) for what, inner in changes(part))


def test_a_model_that_does_not_say_its_type_is_taken(tmp_path: Path) -> None:
    """As the file that GPT-2's own repository has."""
    said = write(tmp_path / "said", ["a b"])
    values = json.loads((said / "tokenizer.json").read_text())
    del values["model"]["type"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    assert load_tokenizer(str(tmp_path)).fingerprint == load_tokenizer(str(said)).fingerprint


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "added_tokens.json", "tokenizer_config.json"])
def test_whatever_is_missing_or_of_another_type_is_taken_or_refused_in_one_line(tmp_path: Path, name: str) -> None:
    values = json.loads((write(tmp_path, ["a b", "ab c"]) / "tokenizer.json").read_text())
    if name != "tokenizer.json":
        (tmp_path / "tokenizer.json").unlink()
        (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nab c\n")
    parts = {"vocab.json": values["model"]["vocab"], "added_tokens.json": {"<|endoftext|>": 258}}
    parts["tokenizer_config.json"] = SETTINGS | {"added_tokens_decoder": {"258": values["added_tokens"][0]}}
    if name == "tokenizer.json":
        parts = {name: values}
    for file, content in parts.items():
        (tmp_path / file).write_text(json.dumps(content))
    assert load_tokenizer(str(tmp_path)).eot == 258
    lines = {}
    for what, changed in changes(parts[name]):
        (tmp_path / name).write_text(json.dumps(changed))
        try:
            read_bpe(tmp_path)
        except UserError as error:
            lines[what] = str(error)
    assert lines
    assert not {what: line for what, line in lines.items() if len(line.splitlines()) != 1 or len(line) > 400}


def test_merges_out_of_the_order_of_their_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ids do not rise in the order of the merges"):
        load_tokenizer(str(write(tmp_path, ["a b", "c d"], {"ab": 257, "cd": 256})))


def test_files_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder without a tokenizer; expected tokenizer\.json, or vocab\.json"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json is not JSON"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"tokenizer\.json is not UTF-8"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match=r"tokenizer\.json is nested too deeply"):
        load_tokenizer(str(tmp_path))
