"""Tokenizers: GPT-2's BPE, raw bytes, tiktoken's rank files, Hugging Face's byte-level BPEs. The only importer of
tiktoken."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tiktoken

from gpt3_jax.data import hf_tokenizer
from gpt3_jax.data.files import is_file, is_folder, read_errors, read_text, regular
from gpt3_jax.data.long_runs import LETTER, NUMBER, RUN, SPACE, WINDOW, encode_piece, segments
from gpt3_jax.errors import UserError
from gpt3_jax.paths import local_path

END_OF_TEXT = "<|endoftext|>"

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's rule for splitting text before merging bytes (its published pattern, with shorter contractions)."""


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
      name: the name given to `load_tokenizer`.
      n_vocab: number of token ids, end-of-text included.
      eot: id of end-of-text, which separates documents.
      fingerprint: sha256 over the splitting pattern, every token's bytes and the special token. Tokenizers with equal
        fingerprints encode alike, whichever file they came from.
    """

    def __init__(
        self, name: str, pieces: Mapping[int, bytes], eot: int, pattern: str, others: Mapping[int, bytes] | None = None
    ) -> None:
        """`others` are tokens that no text is encoded to; they are only decoded."""
        self.name = name
        self.eot = eot
        decoded = {**pieces, **(others or {})}
        self.n_vocab = max(max(decoded), eot) + 1
        self.fingerprint = _fingerprint(pieces, eot, pattern, others or {})
        # Ids without a token (a few rank files have gaps) decode to nothing.
        self._pieces = [decoded.get(i, b"") for i in range(self.n_vocab)]
        self._lengths = np.array([len(piece) for piece in self._pieces], np.int64)
        self._pieces[eot] = END_OF_TEXT.encode()

    @abstractmethod
    def encode_array(self, text: str) -> np.ndarray:
        """Token ids of `text`, uint32 [n]. A special token's name inside the text is ordinary text."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. A special token's name inside the text is ordinary text."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes of `ids`. End-of-text decodes to its name. Raises UserError for an id out of range."""
        return b"".join([self._pieces[i] for i in self._checked(ids).tolist()])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Like `decode_bytes`, as text. Bytes that are not UTF-8 (part of a character) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self, ids: Sequence[int] | np.ndarray) -> int:
        """UTF-8 bytes of text in `ids`, for bits per byte. End-of-text counts 0 bytes, because it is not in the
        text."""
        return int(self.lengths(ids).sum())

    def lengths(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """UTF-8 bytes of text in each id, int64 [n]; end-of-text counts 0."""
        lengths: np.ndarray = self._lengths[self._checked(ids)]
        return lengths

    def _checked(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        array = np.asarray(ids, dtype=np.int64)
        bad = array[(array < 0) | (array >= self.n_vocab)]
        if bad.size:
            raise UserError(
                f"token id {bad.flat[0]} is not in tokenizer {self.name!r}, whose ids are 0 to {self.n_vocab - 1}; "
                "was the text tokenized with another one?"
            )
        return array


class ByteTokenizer(Tokenizer):
    """The 256 bytes and end-of-text (256). Needs no download."""

    def __init__(self) -> None:
        super().__init__("bytes", {i: bytes([i]) for i in range(256)}, eot=256, pattern="")

    def encode_array(self, text: str) -> np.ndarray:
        return np.frombuffer(_without_surrogates(text).encode(), np.uint8).astype(np.uint32)


class BpeTokenizer(Tokenizer):
    """Byte-pair encoding by tiktoken, which defines the reference result of the merges."""

    def __init__(
        self,
        name: str,
        encoding: tiktoken.Encoding,
        pieces: Mapping[int, bytes],
        eot: int,
        pattern: str,
        others: Mapping[int, bytes] | None = None,
    ) -> None:
        super().__init__(name, pieces, eot, pattern, others)
        self._encoding = encoding
        self._encoded = pieces
        self._by_gpt2s_rule = pattern == GPT2_PATTERN

    def encode_array(self, text: str) -> np.ndarray:
        """As `Tokenizer.encode_array`. Raises UserError for a text that tiktoken cannot split with a custom pattern."""
        text = _without_surrogates(text)
        if len(text) <= RUN or not self._by_gpt2s_rule:
            return self._encode(self._encoding, text)
        window = max(WINDOW, 4 * int(self._lengths.max()))
        parts = [
            encode_piece(part, self._merge, self._lengths, window) if whole else self._encode(self._encoding, part)
            for part, whole in segments(text, character_classes(), RUN)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _encode(self, encoding: tiktoken.Encoding, text: str) -> np.ndarray:
        try:
            # Unlike tiktoken's other methods, encode_to_numpy does not repair lone surrogates.
            ids: np.ndarray = encoding.encode_to_numpy(text, disallowed_special=())
        except BaseException as error:
            # ValueError today. Before 0.13 a Rust panic, which is not an Exception and has no type that can be
            # imported.
            if not isinstance(error, ValueError) and type(error).__name__ != "PanicException":
                raise
            raise UserError(
                f"tokenizer {self.name!r} cannot cut a text of {len(text):,} characters into words ({error}): it has "
                "a run that is too long for the pattern"
            ) from None
        return ids

    def _merge(self, piece: str) -> np.ndarray:
        return self._encode(self._whole, piece)

    @functools.cached_property
    def _whole(self) -> tiktoken.Encoding:
        """The same merges, applied to a whole text as one piece."""
        ranks = {piece: i for i, piece in self._encoded.items()}
        return tiktoken.Encoding(f"{self.name} merges", pat_str="(?s:.+)", mergeable_ranks=ranks, special_tokens={})


@functools.cache
def character_classes() -> np.ndarray:
    """The class of each code point, uint8 [0x110000], according to tiktoken's regular expressions, whose Unicode tables
    differ from Python's. Takes a second."""
    classes = np.zeros(0x110000, np.uint8)
    every = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    single_bytes = {bytes([i]): i for i in range(256)}
    for pattern, kind in ((r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)):
        encoding = tiktoken.Encoding(pattern, pat_str=pattern, mergeable_ranks=single_bytes, special_tokens={})
        # Characters that do not match the pattern are missing from the tokens, which here are the bytes.
        members = encoding.encode_to_numpy(every, disallowed_special=()).astype(np.uint8).tobytes().decode()
        classes[np.frombuffer(members.encode("utf-32-le"), "<u4")] = kind
    return classes


def load_tokenizer(name: str) -> Tokenizer:
    """Loads a tokenizer.

    Args:
      name: `r50k_base` (GPT-2's BPE, downloaded once by tiktoken), `bytes`, the path of a tiktoken rank file (lines
        of a base64 token and its rank), or of a folder with Hugging Face's files of a byte-level BPE (`hf_tokenizer`).
        A rank file records neither the splitting pattern nor end-of-text. The defaults are GPT-2's pattern and the id
        after the last rank; FILE.json beside it may override them with {"pattern": "...", "end_of_text": 123}.

    Raises:
      UserError: no such tokenizer, malformed files, or GPT-2's ranks could not be fetched.
    """
    if name == "bytes":
        return ByteTokenizer()
    if name == "r50k_base":
        return _gpt2()
    path = Path(local_path(name, "tokenizer"))
    if is_file(path):
        return _from_rank_file(path)
    if is_folder(path):
        return _from_folder(path)
    if path.name != name:
        regular(path)  # raises an error that says what is there
    raise UserError(
        f"tokenizer {name!r} is neither r50k_base, bytes, nor the path of a tiktoken rank file or of a folder with "
        "Hugging Face's tokenizer files"
    )


def _gpt2() -> Tokenizer:
    try:
        encoding = tiktoken.get_encoding("r50k_base")
    # tiktoken raises requests' exceptions (an OSError each) without a network, ValueError for a broken download.
    except (OSError, ValueError) as error:
        raise UserError(
            "tokenizer 'r50k_base' could not be fetched: no network, or a broken download "
            f"({type(error).__name__}); set TIKTOKEN_CACHE_DIR to a folder where tiktoken fetched it "
            "before, or use the tokenizer 'bytes', which needs none"
        ) from error
    eot = encoding.eot_token
    pieces = {i: encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab) if i != eot}
    return BpeTokenizer("r50k_base", encoding, pieces, eot, GPT2_PATTERN)


def _from_rank_file(path: Path) -> Tokenizer:
    ranks: dict[bytes, int] = {}
    with read_errors(path):
        data = path.read_bytes()
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            piece, value = base64.b64decode(token, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise UserError(
                f"{path}, line {number}: {line[:60]!r} is not a base64 token and its rank; "
                "expected a tiktoken rank file"
            ) from None
        if piece in ranks or value < 0 or not piece:
            raise UserError(f"{path}, line {number}: rank {value} of token {piece!r} is negative, empty or a duplicate")
        ranks[piece] = value
    missing = [i for i in range(256) if bytes([i]) not in ranks]
    if missing:
        raise UserError(f"{path} has no rank for byte {missing[0]}; a tiktoken rank file has all 256 single bytes")
    if len(set(ranks.values())) != len(ranks):
        raise UserError(f"{path} gives one rank to two tokens; expected {len(ranks)} different ranks")

    pattern, eot = GPT2_PATTERN, max(ranks.values()) + 1
    beside = path.with_name(path.name + ".json")
    if is_file(beside):
        pattern, eot = _read_settings(beside, pattern, eot)
    if eot in set(ranks.values()):
        raise UserError(f"{beside}: end_of_text {eot} is already the rank of a token; choose a free id")
    try:
        encoding = tiktoken.Encoding(
            path.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: eot}
        )
    except ValueError as error:
        raise UserError(f"{beside}: pattern {pattern!r} is not a regular expression that tiktoken reads") from error
    return BpeTokenizer(str(path), encoding, {rank: piece for piece, rank in ranks.items()}, eot, pattern)


def _from_folder(path: Path) -> Tokenizer:
    if not hf_tokenizer.has_tokenizer(path):
        raise UserError(f"tokenizer {str(path)!r} is a folder without a tokenizer; expected {hf_tokenizer.FILES} in it")
    bpe = hf_tokenizer.read_bpe(path)
    encoding = tiktoken.Encoding(
        path.name, pat_str=GPT2_PATTERN, mergeable_ranks=bpe.ranks, special_tokens={END_OF_TEXT: bpe.eot}
    )
    pieces = {rank: piece for piece, rank in bpe.ranks.items()}
    return BpeTokenizer(str(path), encoding, pieces, bpe.eot, GPT2_PATTERN, bpe.others)


def _read_settings(path: Path, pattern: str, eot: int) -> tuple[str, int]:
    try:
        settings = json.loads(read_text(path))
    except ValueError:
        settings = None
    if not isinstance(settings, dict) or not set(settings) <= {"pattern", "end_of_text"}:
        raise UserError(f'{path} is not {{"pattern": "...", "end_of_text": 123}}, either of them optional')
    pattern, eot = settings.get("pattern", pattern), settings.get("end_of_text", eot)
    if not isinstance(pattern, str) or not isinstance(eot, int) or not 0 <= eot < 2**31:
        raise UserError(f"{path}: expected a text for pattern and a number from 0 for end_of_text")
    return pattern, eot


def _fingerprint(pieces: Mapping[int, bytes], eot: int, pattern: str, others: Mapping[int, bytes]) -> str:
    digest = hashlib.sha256(f"{pattern}\n{END_OF_TEXT} {eot}\n".encode())
    for rank in sorted(pieces):
        digest.update(f"{rank} {pieces[rank].hex()}\n".encode())
    for i in sorted(others):
        digest.update(f"only decoded: {i} {others[i].hex()}\n".encode())
    return digest.hexdigest()


def _without_surrogates(text: str) -> str:
    """`text` with lone surrogates (JSON allows them, UTF-8 does not) replaced by U+FFFD, pairs joined."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
