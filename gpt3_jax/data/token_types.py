"""Which type the ids in a file of another program have: from its header, from the ids, or it has to be said."""

from __future__ import annotations

import ast
import dataclasses
import struct
from typing import Any

import numpy as np

from gpt3_jax.data.files import OpenFile, kind_by_magic, sample_starts
from gpt3_jax.errors import RunError, UserError

LARGEST_VOCABULARY = 2**20
"""Of any tokenizer: bounds the ids where the model's vocabulary is not known."""
_ENOUGH = 64
"""16-bit words that must be there before their pattern is believed."""
_CHECKED = 1 << 18

_LLM_C_HEADER = 256 * 4
_LLM_C = {20240520: (1, "<u2"), 20240801: (7, "<u4")}
_LLM_C_EVALUATION = 20240522

# What an editor shows: no control characters but tab, line ends and form feed.
_TEXT = np.zeros(256, bool)
_TEXT[[9, 10, 12, 13, *range(32, 127), *range(128, 256)]] = True


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the ids lie in a file."""

    dtype: np.dtype[Any]
    offset: int
    """Bytes before the first id."""
    count: int


def layout(file: OpenFile, stated: str, known: str | None, n_vocab: int | None) -> Layout:
    """Settles the type of the ids in `file`.

    In this order: the file's own header (llm.c's and modded-nanogpt's, NumPy's), the type that an index beside it
    records, what the user said, and the ids. Wherever it comes from, a type under which the ids are impossible is
    refused.

    Args:
      file: at least one byte.
      stated: what the user said, "auto" for nothing.
      known: numpy's name for what an index beside the file records.
      n_vocab: of the model; None: any.

    Raises:
      UserError: the file is of another kind, the types contradict, or the type cannot be told from the ids.
      RunError: the size is not a whole number of ids, or a header promises another number.
    """
    head = file.bytes_at(0, min(file.size, _LLM_C_HEADER))
    found = _llm_c(file, head) or _numpy(file, head)
    if found is not None:
        _agree(file.path, "its header", found.dtype, stated)
        check_ids(file, found, n_vocab)
        return found
    if known is not None:
        dtype = np.dtype(known).newbyteorder("<")
        _agree(file.path, "the index beside it", dtype, stated)
    elif stated != "auto":
        dtype = np.dtype(stated).newbyteorder("<")
    else:
        dtype = _from_ids(file, head, n_vocab)
    if file.size % dtype.itemsize:
        raise RunError(
            f"{file.path} has {file.size} bytes, not a whole number of {dtype.name} ids; it is truncated, or its "
            "dtype is another"
        )
    raw = Layout(dtype, 0, file.size // dtype.itemsize)
    check_ids(file, raw, n_vocab)
    return raw


def _agree(path: str, where: str, dtype: np.dtype[Any], stated: str) -> None:
    if stated not in ("auto", dtype.name):
        raise UserError(f"{path}: dtype is {stated}, but {where} says {dtype.name}; leave dtype out")


def _llm_c(file: OpenFile, head: bytes) -> Layout | None:
    if len(head) < 12:
        return None
    magic, version, count = struct.unpack("<3i", head[:12])
    if magic == _LLM_C_EVALUATION:
        raise UserError(f"{file.path} is an evaluation file of llm.c (magic {magic}), not a stream of token ids")
    if magic not in _LLM_C:
        return None
    expected, code = _LLM_C[magic]
    if version != expected:
        raise UserError(f"{file.path} is llm.c's format {magic} in version {version}; this program reads {expected}")
    dtype = np.dtype(code)
    return _promised(file, Layout(dtype, _LLM_C_HEADER, count))


def _numpy(file: OpenFile, head: bytes) -> Layout | None:
    if not head.startswith(b"\x93NUMPY"):
        return None
    try:
        before, form = (10, "<H") if head[6] == 1 else (12, "<I")
        (length,) = struct.unpack(form, head[8:before])
        fields = ast.literal_eval(head[before : before + length].decode("latin-1"))
        dtype, shape = np.dtype(fields["descr"]), tuple(fields["shape"])
        offset, count = before + length, int(shape[0]) if len(shape) == 1 else -1
    except (ValueError, KeyError, TypeError, SyntaxError, IndexError, struct.error):
        raise RunError(f"{file.path} has a damaged NumPy header; fetch it again") from None
    if dtype.kind not in "iu" or count < 0:
        raise UserError(f"{file.path} is a NumPy array of {dtype} with shape {shape}; expected ids in one dimension")
    return _promised(file, Layout(dtype, offset, count))


def _promised(file: OpenFile, found: Layout) -> Layout:
    expected = found.offset + found.count * found.dtype.itemsize
    if found.count < 0 or file.size != expected:
        raise RunError(
            f"{file.path}: its header promises {found.count} ids of {found.dtype.name}, {expected} bytes with itself, "
            f"and it has {file.size}; it is truncated or damaged, fetch it again"
        )
    return found


def _from_ids(file: OpenFile, head: bytes, n_vocab: int | None) -> np.dtype[Any]:
    say = "say what it is with dtype (uint16, uint32, int32 or int64)"
    if kind := kind_by_magic(head):
        raise UserError(f"{file.path} begins as {kind} does, not as raw token ids; unpack or convert it, or {say}")
    if _is_text(file):
        raise UserError(f"{file.path} holds text, not token ids; text becomes token shards by `gpt3-jax data tokenize`")
    words = _words(file)
    if words.size < _ENOUGH:
        raise UserError(f"{file.path} has {file.size} bytes, too few to tell the type of its ids; {say}")
    fitting = _fits(words, n_vocab or LARGEST_VOCABULARY)
    if len(fitting) == 1 and fitting[0].byteorder != ">":
        return fitting[0].newbyteorder("<")
    if len(fitting) == 1:
        raise UserError(
            f"{file.path} holds big-endian {fitting[0].name} ids; swap the bytes (numpy: "
            f"np.fromfile(PATH, '{fitting[0].str}').astype('<u{fitting[0].itemsize}').tofile(NEW))"
        )
    if not fitting:
        return np.dtype("<u2")  # which `check_ids` refuses, naming an id and its place
    raise UserError(f"{file.path} may hold {' or '.join(dtype.name for dtype in fitting)}; {say}")


def _is_text(file: OpenFile) -> bool:
    data = file.bytes_at(0, min(file.size, 1 << 16))
    if len(data) < 2 * _ENOUGH or not _TEXT[np.frombuffer(data, np.uint8)].all():
        return False
    try:
        data[: data.rfind(b" ") + 1 or len(data)].decode()
    except UnicodeDecodeError:
        return False
    return True


def _words(file: OpenFile) -> np.ndarray:
    """Samples of the file as little-endian 16-bit words, [n, 4]: what 64-bit numbers at these places consist of."""
    parts = [
        np.frombuffer(file.bytes_at(start - start % 8, count - count % 8), "<u2").reshape(-1, 4)
        for start, count in sample_starts(file.size)
    ]
    return np.concatenate(parts)


def _fits(words: np.ndarray, n_vocab: int) -> list[np.dtype[Any]]:
    """The types under which samples `words` [n, 4] are ids below `n_vocab`.

    Text has no pattern in 2, 4 or 8 bytes. So where every second 16-bit word is as small as the upper half of a 32-bit
    id must be (0 for up to 65,536 ids) and the others are not, these are upper halves.
    """
    upper = (n_vocab - 1) >> 16
    swapped = words.byteswap()
    pattern = []
    for order, w in (("<", words), (">", swapped[:, ::-1])):
        if w[:, 0].max() > upper and (w[:, 1] <= upper).all() and not w[:, 2:].any():
            pattern.append(np.dtype(f"{order}i8"))
        elif w[:, ::2].max() > upper and w[:, 1::2].max() <= upper:
            pattern.append(np.dtype(f"{order}u4"))
    if pattern:
        return pattern
    if not words.any():
        return [np.dtype(code) for code in ("<u2", "<u4", "<i8")]
    orders = [order for order, w in (("<", words), (">", swapped)) if w.max() < n_vocab]
    if orders == ["<", ">"]:  # nearly any bytes are below a large vocabulary; that of this machine is the common one
        orders = ["<"]
    return [np.dtype(f"{order}u2") for order in orders]


def check_ids(file: OpenFile, found: Layout, n_vocab: int | None) -> None:
    """Refuses a type under which samples of the ids are impossible: beyond the vocabulary, or every second one 0.

    Raises:
      UserError: naming the id and its place, and the type that would fit.
    """
    size, itemsize = found.count * found.dtype.itemsize, found.dtype.itemsize
    other = ""
    if file.size >= 2 * _ENOUGH and not found.offset:
        likely = [dtype.name for dtype in _fits(_words(file), n_vocab or LARGEST_VOCABULARY) if dtype.byteorder != ">"]
        other = likely[0] if len(likely) == 1 else ""
    pattern = []
    for start, count in sample_starts(size):
        first, last = start // itemsize, (start + count) // itemsize
        ids = np.empty(last - first, found.dtype)
        file.read_into(ids, found.offset + first * itemsize)
        bad = (ids < 0) | (ids >= (n_vocab or LARGEST_VOCABULARY))
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            limit = (n_vocab or LARGEST_VOCABULARY) - 1
            whose = "the model's vocabulary ends" if n_vocab else "no tokenizer's vocabulary goes on"
            beyond = f"at {limit}" if n_vocab else f"beyond {limit}"
            fits = f"; read as {other} its ids are possible, set dtype to that" if _differs(other, found.dtype) else ""
            raise UserError(
                f"{file.path} holds token id {ids[at]} at token {first + at}, read as {found.dtype.name}, but {whose} "
                f"{beyond}; it is of another tokenizer, of another dtype, or damaged{fits}"
            )
        pattern.append(ids[: len(ids) // 2 * 2].reshape(-1, 2))
    pairs = np.concatenate(pattern)
    if len(pairs) < _ENOUGH // 2:
        return
    for zero, rest in ((1, 0), (0, 1)):
        if not pairs[:, zero].any() and pairs[:, rest].any():
            fits = f"; as {other} they are possible, set dtype to that" if _differs(other, found.dtype) else ""
            raise UserError(
                f"{file.path}: read as {found.dtype.name}, every second token id is 0: its ids are wider than that, or "
                f"big-endian{fits}"
            )


def _differs(other: str, dtype: np.dtype[Any]) -> bool:
    return bool(other) and np.dtype(other).itemsize != dtype.itemsize
