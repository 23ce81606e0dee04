"""Determines the type of the ids in another program's file, from its header or from the ids, or requires the user
to."""

from __future__ import annotations

import ast
import dataclasses
import struct
from typing import Any

import numpy as np

from gpt3_jax.data.files import OpenFile, kind_by_magic, sample_starts
from gpt3_jax.errors import RunError, UserError

LARGEST_VOCABULARY = 2**20
"""Upper limit of any tokenizer's vocabulary, used if the model's vocabulary is not known."""
_ENOUGH = 64
"""Minimum number of 16-bit words for which a pattern counts as evidence."""
_CHECKED = 1 << 18

_LLM_C_HEADER = 256 * 4
_LLM_C = {20240520: (1, "<u2"), 20240801: (7, "<u4")}
_LLM_C_EVALUATION = 20240522

# Characters that appear in text: no control characters except tab, line ends and form feed.
_TEXT = np.zeros(256, bool)
_TEXT[[9, 10, 12, 13, *range(32, 127), *range(128, 256)]] = True


@dataclasses.dataclass(frozen=True)
class Layout:
    """Position and type of the ids in a file."""

    dtype: np.dtype[Any]
    offset: int
    """Bytes before the first id."""
    count: int


def layout(file: OpenFile, stated: str, known: str | None, n_vocab: int | None) -> Layout:
    """Determines the type of the ids in `file`.

    The sources are, in order: the file's own header (llm.c's, modded-nanogpt's, NumPy's), the type that an index beside
    it records, the user's setting, and the ids. A type for which the ids are invalid is refused, whatever its source.

    Args:
      file: at least one byte long.
      stated: the user's setting, "auto" for none.
      known: numpy's name of the type that an index beside the file records.
      n_vocab: vocabulary size of the model; None: any.

    Raises:
      UserError: the file is of another kind, the types contradict, or the ids do not determine the type.
      RunError: the size is not a whole number of ids, or disagrees with the header.
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
    say = "set its type with dtype (uint16, uint32, int32 or int64)"
    if kind := kind_by_magic(head):
        raise UserError(f"{file.path} begins as {kind} does, not as raw token ids; unpack or convert it, or {say}")
    if _is_text(file):
        raise UserError(f"{file.path} holds text, not token ids; text becomes token shards by `gpt3-jax data tokenize`")
    words = _words(file)
    if words.size < _ENOUGH:
        raise UserError(f"{file.path} has {file.size} bytes, too few to tell the type of its ids; {say}")
    limit = n_vocab or LARGEST_VOCABULARY
    wide = _wide(words, limit)
    if wide is None and not words.any():
        raise UserError(f"{file.path} holds zeros only, which are ids of any type; {say}")
    if wide is None and words.max() >= limit > words.byteswap().max():
        wide = np.dtype(">u2")
    if wide is not None and _order(wide) == ">":
        raise UserError(
            f"{file.path} holds {_named(wide)} ids; swap the bytes (numpy: np.fromfile(PATH, '{wide.str}')"
            f".astype('<u{wide.itemsize}').tofile(NEW))"
        )
    return np.dtype("<u2") if wide is None else wide  # `check_ids` refuses it if it does not fit either


def _is_text(file: OpenFile) -> bool:
    data = file.bytes_at(0, min(file.size, 1 << 16))
    if len(data) < 2 * _ENOUGH or not _TEXT[np.frombuffer(data, np.uint8)].all():
        return False
    try:
        data[: data.rfind(b" ") + 1 or len(data)].decode()
    except UnicodeDecodeError:
        return False
    return True


def _words(file: OpenFile, offset: int = 0) -> np.ndarray:
    """Samples of the file as little-endian 16-bit words, [n, 4]: the words of the 64-bit numbers at these places."""
    parts = [
        np.frombuffer(file.bytes_at(offset + start - start % 8, count - count % 8), "<u2").reshape(-1, 4)
        for start, count in sample_starts(file.size - offset)
    ]
    return np.concatenate(parts)


def _wide(words: np.ndarray, n_vocab: int) -> np.dtype[Any] | None:
    """The type wider than 16 bits whose pattern the samples `words` [n, 4] have; None if they have none.

    Text has no pattern in 2, 4 or 8 bytes. So if every second 16-bit word is as small as the upper half of an id below
    `n_vocab` must be (0 for up to 65,536 ids) and the others are not, these words are upper halves.
    """
    if words.size < _ENOUGH:
        return None
    upper = (n_vocab - 1) >> 16
    for order, w in (("<", words), (">", words.byteswap()[:, ::-1])):
        if w[:, 0].max() > upper and (w[:, 1] <= upper).all() and not w[:, 2:].any():
            return np.dtype(f"{order}i8")
        if w[:, ::2].max() > upper and w[:, 1::2].max() <= upper:
            return np.dtype(f"{order}u4")
    return None


def check_ids(file: OpenFile, found: Layout, n_vocab: int | None) -> None:
    """Refuses a type for which samples of the ids are invalid: they have the pattern of another type, or are no ids.

    Raises:
      UserError: the type does not fit. Names the type that would, or the first invalid id and its position.
    """
    itemsize, limit = found.dtype.itemsize, n_vocab or LARGEST_VOCABULARY
    wide = _wide(_words(file, found.offset), limit) if itemsize > 1 else None
    if wide is not None and (wide.itemsize, _order(wide)) != (itemsize, _order(found.dtype)):
        what_to_do = "swap the bytes" if _order(wide) == ">" else f"set dtype to {wide.name}"
        raise UserError(
            f"{file.path} is to be read as {found.dtype.name}, but it holds {_named(wide)} ids: every second id would "
            f"be 0 or close to it; {what_to_do}"
        )
    for start, count in sample_starts(found.count * itemsize):
        first, last = start // itemsize, (start + count) // itemsize
        ids = np.empty(last - first, found.dtype)
        file.read_into(ids, found.offset + first * itemsize)
        bad = np.flatnonzero((ids < 0) | (ids >= limit))
        if bad.size:
            whose = (
                f"the model's vocabulary ends at {limit - 1}" if n_vocab else f"no vocabulary goes beyond {limit - 1}"
            )
            raise UserError(
                f"{file.path} holds token id {ids[bad[0]]} at token {first + bad[0]}, read as {_named(found.dtype)}, "
                f"but {whose}; it is of another tokenizer, of another dtype, or damaged"
            )


def _order(dtype: np.dtype[Any]) -> str:
    return ">" if dtype.str[0] == ">" else "<"


def _named(dtype: np.dtype[Any]) -> str:
    return f"big-endian {dtype.name}" if _order(dtype) == ">" else dtype.name
