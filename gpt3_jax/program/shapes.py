"""Shapes as XLA writes them in a program's text: ``bf16[768,3072]{1,0}``; a tuple in parentheses."""

from __future__ import annotations

import math
import re

from gpt3_jax.errors import RunError

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "token": 0, "opaque": 0, "c64": 8, "c128": 16}
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


def shape_bytes(shape: str) -> float:
    """Bytes of a result without its layout's padding; of a tuple, the sum of its parts."""
    total = 0.0
    for dtype, dims in _SHAPE.findall(re.sub(r"\{[^{}]*\}", "", shape)):
        total += math.prod(int(d) for d in dims.split(",") if d) * _itemsize(dtype)
    return total


def shape_dims(shape: str) -> list[tuple[int, ...]]:
    """Dimensions of a result; of a tuple, of each of its parts."""
    found = _SHAPE.findall(re.sub(r"\{[^{}]*\}", "", shape))
    return [tuple(int(d) for d in dims.split(",") if d) for _, dims in found]


def _itemsize(dtype: str) -> float:
    if dtype in _BYTES:
        return _BYTES[dtype]
    if found := re.match(r"[a-z]+(\d+)", dtype):  # f32, s32, u8, f8e4m3fn
        return int(found[1]) / 8
    raise RunError(f"the compiled program has values of type {dtype}, whose size is not known")


def shape_parts(shape: str) -> list[str]:
    """The shapes of a tuple's parts; nested tuples stay whole. A shape that is no tuple is its only part."""
    if not shape.startswith("("):
        return [shape]
    parts, depth, start = [], 0, 1
    shape = re.sub(r"/\*.*?\*/", "", shape)
    for at, character in enumerate(shape):
        depth += (character in "([{") - (character in ")]}")
        if (character == "," and depth == 1) or (character == ")" and depth == 0):
            parts.append(shape[start:at].strip())
            start = at + 1
    return parts
