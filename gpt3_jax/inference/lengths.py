"""Lengths that rows of tokens are padded to: few, so that few programs are compiled, but enough for little padding."""

from __future__ import annotations

LENGTHS = (16, 32, 64, 96, 128, 192, 256, 384, 512, 640, 768, 1024, 1280, 1536, 1792, 2048)
"""Beyond the last, multiples of 512. From 64 tokens on a third at most is padding."""
_SHORTEST_SHARED = 64
_SHORTEST_CACHE = 512


def padded_length(length: int, least: int, room: int) -> int:
    """The first of these lengths that is at least `length` and `least`; at most `room`, which is at least `length`."""
    wanted = max(length, least)
    return min(next((n for n in LENGTHS if n >= wanted), -(-wanted // 512) * 512), room)


def cache_length(length: int, room: int) -> int:
    """How many tokens a cache that grows (`cpu.grows_caches`) holds for rows that have `length` of them: a power of
    two, 512 at least; at most `room`. Each step reads all of its cache, and a cache that is full becomes one of twice
    the length: a program more."""
    return min(max(_SHORTEST_CACHE, 1 << (length - 1).bit_length()), room)


def shared_length(length: int, longest: int) -> int:
    """How much of the `length` tokens that prompts begin with is computed once: the last of these lengths that is at
    most `length`.

    0, none, for less than 64 tokens or less than half of the `longest` prompt: what stands behind a prefix is read
    without the platform's attention kernel (`model.decode.prefill`), and each pair of lengths is another program.
    """
    shared = length // 512 * 512 if length >= LENGTHS[-1] else max((n for n in LENGTHS if n <= length), default=0)
    return shared if shared >= _SHORTEST_SHARED and 2 * shared >= longest else 0
