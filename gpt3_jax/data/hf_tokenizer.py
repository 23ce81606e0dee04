"""Reads a byte-level BPE from Hugging Face's tokenizer files, as token bytes with their ranks.

Hugging Face lists the merges: which two tokens become one, in order of priority. tiktoken merges any two neighbours
whose bytes together are a token, and the token's id is its priority. The two agree if the last merge that makes a token
out of its own bytes is one of those listed, and if ids rise in the order of the merges. Both are checked here. (Until a
token is made, nothing outside it has been merged with its bytes, so it is made in a text as it is made alone. Hence no
other two neighbours can ever form it.) A listed token that its own merges never make is only decoded.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt3_jax.data.files import is_file, read_errors
from gpt3_jax.errors import UserError

_ONE, _VOCABULARY, _MERGES = "tokenizer.json", "vocab.json", "merges.txt"
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
FILES = f"{_ONE}, or {_VOCABULARY} and {_MERGES}"

# Settings of tokenizer.json that a byte-level BPE like GPT-2's does not use, and their values there.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "type": (None, "BPE"),  # missing in older files, such as GPT-2's own
    "dropout": (None, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}


@dataclasses.dataclass(frozen=True)
class Bpe:
    """A byte-level BPE with GPT-2's splitting pattern."""

    ranks: dict[bytes, int]
    """Bytes of each token that texts are encoded to, and its id, which is also its priority in merging."""
    others: dict[int, bytes]
    """Tokens that no text is encoded to: special ones, and those that merges never make."""
    eot: int
    """End-of-text, which is in neither."""


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds Hugging Face's tokenizer files."""
    return is_file(folder / _ONE) or (is_file(folder / _VOCABULARY) and is_file(folder / _MERGES))


def read_bpe(folder: Path) -> Bpe:
    """Reads tokenizer.json, or vocab.json and merges.txt. End-of-text is the `eos_token` of tokenizer_config.json.

    Raises:
      UserError: there are no such files, they are malformed, or they are of a tokenizer other than a byte-level BPE
        with GPT-2's splitting pattern.
    """
    settings = [_read_json(folder / name) for name in _SETTINGS if is_file(folder / name)]
    if is_file(folder / _ONE):
        path = folder / _ONE
        vocabulary, lines, added = _one_file(path)
    else:
        path = folder / _VOCABULARY
        vocabulary = _ids(_read_json(path), path)
        lines = [line.rstrip("\r") for line in _read(folder / _MERGES).split("\n")]
        lines = [line for line in lines if line and not line.startswith("#version")]
        added = _added_tokens(folder, settings)
    for values in settings:
        if values.get("add_prefix_space"):
            raise UserError(f"{folder / _SETTINGS[0]}: add_prefix_space is true; expected false, as GPT-2's")
    name = next((_content(values["eos_token"]) for values in settings if values.get("eos_token")), "<|endoftext|>")
    every = vocabulary | added
    if name not in every:
        raise UserError(
            f"{path} has no token {name!r}; expected the end-of-text token, the eos_token of {_SETTINGS[0]}"
        )
    pieces = {i: _bytes(token) if token not in added else token.encode() for token, i in every.items()}
    if len(pieces) != len(every):
        raise UserError(f"{path} gives one id to two tokens; expected {len(every)} different ids")
    ranks = _ranks({token: i for token, i in vocabulary.items() if token not in added}, lines, path)
    encoded = set(ranks.values())
    others = {i: piece for i, piece in pieces.items() if i not in encoded and i != every[name]}
    return Bpe(ranks, others, every[name])


def _one_file(path: Path) -> tuple[dict[str, int], Sequence[Any], dict[str, int]]:
    """Vocabulary, merges and added tokens of tokenizer.json."""
    values = _read_json(path)
    model, splitting = values.get("model"), values.get("pre_tokenizer") or {}
    if not isinstance(model, dict):
        raise UserError(f"{path} has no model; expected a byte-level BPE")
    for key, known in _REQUIRED.items():
        if model.get(key) not in known:
            raise UserError(
                f"{path}: model.{key} is {_shown(model.get(key))}; expected {known[-1]!r}, as in a byte-level BPE"
            )
    if values.get("normalizer") is not None:
        raise UserError(f"{path}: normalizer is {_kind(values['normalizer'])}; expected null, as in GPT-2's tokenizer")
    if not isinstance(splitting, dict) or _kind(splitting) != "ByteLevel" or not splitting.get("use_regex", True):
        raise UserError(f"{path}: pre_tokenizer is {_kind(splitting)}; expected ByteLevel with GPT-2's pattern")
    if splitting.get("add_prefix_space"):
        raise UserError(f"{path}: add_prefix_space is true; expected false, as GPT-2's")
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise UserError(f"{path}: model.merges is missing or no list; expected pairs of tokens")
    return _ids(model.get("vocab"), path), merges, _special(values.get("added_tokens") or [], path)


def _added_tokens(folder: Path, settings: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Tokens that files beside vocab.json add to it."""
    added: dict[str, int] = {}
    if is_file(folder / "added_tokens.json"):
        added = _ids(_read_json(folder / "added_tokens.json"), folder / "added_tokens.json")
    for values in settings:
        later = values.get("added_tokens_decoder") or {}
        path = folder / _SETTINGS[0]
        try:
            listed = [{**token, "id": int(i)} for i, token in later.items()]
        except (AttributeError, TypeError, ValueError):
            raise UserError(f"{path}: added_tokens_decoder is no map from ids to tokens") from None
        added |= _special(listed, path)
    return added


def _special(tokens: Any, path: Path) -> dict[str, int]:
    """Ids of added tokens by name. Those that are not special would cut texts before the pattern does."""
    try:
        for token in tokens:
            if not isinstance(token["content"], str):
                raise TypeError
            if not token.get("special", False):
                raise UserError(
                    f"{path} adds a token {_shown(token['content'])} that is not special, at which texts are split; "
                    "this project's tokenizers have no such tokens"
                )
        return _ids({token["content"]: token["id"] for token in tokens}, path)
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{path} has malformed added tokens; expected a content and an id of each") from None


def _ranks(vocabulary: dict[str, int], lines: Sequence[Any], path: Path) -> dict[bytes, int]:
    order: dict[tuple[str, str], int] = {}
    for line in lines:
        pair = tuple(line.split(" ")) if isinstance(line, str) else tuple(line) if isinstance(line, list) else ()
        if len(pair) != 2 or not all(isinstance(token, str) for token in pair):
            raise UserError(f"{path.parent}: merge {_shown(line)} is not two tokens")
        missing = next((token for token in (*pair, "".join(pair)) if token not in vocabulary), None)
        if missing is not None:
            raise UserError(f"{path}: merge {' '.join(pair)!r} needs the token {missing!r}, which the vocabulary lacks")
        order.setdefault((pair[0], pair[1]), len(order))
    absent = next((byte for character, byte in _BYTES.items() if character not in vocabulary), None)
    if absent is not None:
        raise UserError(f"{path} has no token for byte {absent}; a byte-level BPE has all 256 single bytes")
    made = {left + right: _last_merge(left + right, order) for left, right in order}
    merged = sorted((last, token) for token, last in made.items() if last is not None)
    ids = [vocabulary[token] for _, token in merged]
    if ids != sorted(ids):
        raise UserError(f"{path}: ids do not rise in the order of the merges; such a tokenizer is not supported")
    tokens = [*_BYTES, *(token for _, token in merged)]
    return {_bytes(token): vocabulary[token] for token in tokens}


def _last_merge(token: str, order: dict[tuple[str, str], int]) -> int | None:
    """The merge that makes a token out of its own characters; None if they end as several tokens."""
    parts, last = list(token), None
    while len(parts) > 1:
        found = [(order[pair], i) for i, pair in enumerate(itertools.pairwise(parts)) if pair in order]
        if not found:
            return None
        last, at = min(found)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return last


def _bytes(token: str) -> bytes:
    """The bytes of a token, which GPT-2 spells in printable characters."""
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:
        return token.encode()  # a special token's name, in plain characters


def _byte_characters() -> dict[str, int]:
    """GPT-2's printable characters and the bytes that they stand for: itself where it is printable in Latin-1, else
    the next from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTES = _byte_characters()


def _ids(values: Any, path: Path) -> dict[str, int]:
    if not isinstance(values, dict) or not all(type(i) is int and 0 <= i < 2**31 for i in values.values()):
        raise UserError(f"{path} has no vocabulary; expected tokens and their ids, whole numbers from 0")
    for token in values:
        try:
            token.encode()
        except UnicodeEncodeError:
            raise UserError(f"{path} has a token {_shown(token)}, half a surrogate pair; expected characters") from None
    return values


def _content(token: Any) -> str:
    """A special token's name, which older files give inside a record."""
    return str(token.get("content") if isinstance(token, dict) else token)


def _kind(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else part
    return kind if isinstance(kind, str) and kind.isidentifier() else _shown(kind)


def _shown(value: Any) -> str:
    """A value of a file in one line, which is short whatever the file holds."""
    return reprlib.repr(value)


def _read(path: Path) -> str:
    with read_errors(path):
        data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; copy it again") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; expected a tokenizer's settings") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}; expected keys and values")
    return values
