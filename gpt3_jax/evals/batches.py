"""Requests in token ids, arranged for the device: few shapes, shared contexts once, shared prefixes once.

`arrange` is a pure function of the requests. What it makes does not change a likelihood, but for rounding.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gpt3_jax.inference.lengths import LENGTHS, padded_length

Ids = tuple[int, ...]

_BRANCH_LENGTHS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Lengths that continuations are padded to; beyond the last as contexts."""
_BRANCHES = (2, 3, 4, 5, 6, 8, 12, 16)
MOST_BRANCHES = _BRANCHES[-1]
"""Continuations of one context in a row; more of them get rows of their own."""
_SHARED = 0.9
"""Of the tokens of rows of their own, those that a row of several continuations may have. Its attention is dearer: of
texts that begin alike with end-of-text, each has its own row."""
_PARTS, _STEP = 8, 8
"""Of the distance between two of `LENGTHS`, and the fewest tokens of a part (half as many below 32)."""
_SHORTEST_PREFIX = 64
"""Tokens that contexts have in common before they are looked at as users of one prefix."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One context with continuations of it."""

    context: Ids
    """Without the batch's prefix; at least one token."""
    continuations: tuple[Ids, ...]
    which: tuple[int, ...]
    """The request of each continuation."""

    @property
    def branches(self) -> tuple[Ids, ...]:
        """Continuations that need tokens of their own behind the trunk: a single one lies in the trunk, and the last
        token of each is asked for, never read."""
        return self.continuations if len(self.continuations) > 1 and self.branch_tokens else ()

    @property
    def branch_tokens(self) -> int:
        return max(len(ids) for ids in self.continuations) - 1

    @property
    def trunk(self) -> Ids:
        single = self.continuations[0][:-1] if len(self.continuations) == 1 else ()
        return self.context + single

    @property
    def asked(self) -> int:
        return sum(len(ids) for ids in self.continuations)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of one shape. `model.scoring.Tree` describes the arrays."""

    prefix: Ids
    trunk: int
    branches: int
    tokens_BS: np.ndarray
    lengths_B: np.ndarray
    at_BN: np.ndarray
    labels_BN: np.ndarray
    places: tuple[tuple[tuple[int, int, int], ...], ...]
    """By row: for each continuation its request, and where its tokens are among the asked ones, first and end."""

    @property
    def shape(self) -> tuple[int, ...]:
        """What a program is compiled for."""
        return len(self.prefix), *self.tokens_BS.shape, self.trunk, self.branches, self.at_BN.shape[1]


def arrange(
    requests: Sequence[tuple[Ids, Ids]],
    n_ctx: int,
    batch_tokens: int,
    shards: int = 1,
    tensor: int = 1,
    kernel_block: int = 1,
    shape_tokens: int = 4096,
) -> Iterator[Batch]:
    """All requests, (context ids, continuation ids), each in one batch, the longest first.

    Args:
        requests: context and continuation have at least one token each, and without its last token fit n_ctx.
        batch_tokens: tokens of a batch on one device, padding included; a longer row is a batch of its own.
        shards: the number of rows is a multiple of it.
        tensor: lengths are padded to multiples of it, the tensor axis.
        kernel_block: trunks also to multiples of this, which the attention kernel takes.
        shape_tokens: tokens of padding that another length must save to be worth a program of its own.
    """
    multiple = math.lcm(tensor, kernel_block)
    for prefix, items in _with_prefixes(_items(requests), batch_tokens * shards, multiple):
        room = n_ctx - len(prefix)
        padded = trunk_lengths([len(item.trunk) for item in items], shape_tokens)
        sizes = {id(item): _size(item, padded, multiple, tensor, room) for item in items}
        items = sorted(items, key=lambda item: (sizes[id(item)], len(item.trunk), item.asked, item.which), reverse=True)
        first = 0
        while first < len(items):
            row = sizes[id(items[first])]
            group: list[Item] = []
            for item in items[first:]:
                grown = row.holding(sizes[id(item)])
                fits = grown.tokens * -(-(len(group) + 1) // shards) <= batch_tokens or not group
                # Rows that are left take shorter items too: less padding than a program of their own would cost.
                if not fits or 2 * sizes[id(item)].tokens < grown.tokens:
                    break
                row = grown
                group.append(item)
            first += len(group)
            most = max(1, batch_tokens // row.tokens, -(-len(group) // shards))
            rows = min(_rows(len(group), shards), most * shards)
            if rows < most * shards:
                # A batch that is not full has a program of its own: its rows are only as long as its own items need.
                own = trunk_lengths([len(item.trunk) for item in group], math.inf)
                row = functools.reduce(_Row.holding, (_size(item, own, multiple, tensor, room) for item in group))
            yield _batch(group, prefix, row, rows)


class _Row(NamedTuple):
    """Sizes of a row."""

    trunk: int
    branches: int
    branch_tokens: int

    @property
    def tokens(self) -> int:
        return self.trunk + self.branches * self.branch_tokens

    def holding(self, other: _Row) -> _Row:
        """A row that both fit into."""
        return _Row(*(max(pair) for pair in zip(self, other, strict=True)))


def trunk_lengths(lengths: Sequence[int], shape_tokens: float) -> dict[int, int]:
    """What each of the lengths is padded to.

    Those between two of `LENGTHS` are padded to the next eighth between them that holds the longest: the program is
    another one than for other requests, but still one. A lower eighth is a second program, which must save
    `shape_tokens` tokens of padding.
    """
    cells: dict[int, list[int]] = {}
    for length in lengths:
        cells.setdefault(padded_length(length, 1, length + 512), []).append(length)
    found: dict[int, int] = {}
    for upper, members in cells.items():
        lower = max((n for n in LENGTHS if n < upper), default=0) if upper <= LENGTHS[-1] else upper - 512
        step = max(_STEP if lower >= _STEP * 4 else _STEP // 2, (upper - lower) // _PARTS)
        steps = [lower + -(-(length - lower) // step) * step for length in members]
        taken = [max(steps)]
        while True:
            saved = {each: _saved(each, steps, taken) for each in set(steps) - set(taken)}
            best = max(saved, key=lambda each: saved[each], default=None)
            if best is None or saved[best] < shape_tokens:
                break
            taken.append(best)
        found |= {length: min(n for n in taken if n >= each) for length, each in zip(members, steps, strict=True)}
    return found


def _saved(length: int, wanted: list[int], taken: list[int]) -> int:
    """Tokens of padding that one more length saves."""
    above = min(n for n in taken if n > length)
    below = max((n for n in taken if n < length), default=0)
    return (above - length) * sum(below < each <= length for each in wanted)


def _size(item: Item, padded: dict[int, int], multiple: int, tensor: int, room: int) -> _Row:
    trunk = _round(len(item.trunk), padded[len(item.trunk)], multiple, room)
    if not item.branches:
        return _Row(trunk, 0, 0)
    branches = next(n for n in _BRANCHES if n >= len(item.branches))
    tokens = item.branch_tokens
    padded_tokens = next((n for n in _BRANCH_LENGTHS if n >= tokens), padded_length(tokens, 1, room))
    return _Row(trunk, branches, _round(tokens, padded_tokens, tensor, room))


def _items(requests: Sequence[tuple[Ids, Ids]]) -> list[Item]:
    by_context: dict[Ids, list[int]] = {}
    for i, (context, _) in enumerate(requests):
        by_context.setdefault(context, []).append(i)
    items = []
    for context, which in by_context.items():
        for part in (which[n : n + MOST_BRANCHES] for n in range(0, len(which), MOST_BRANCHES)):
            shared = Item(context, tuple(requests[i][1] for i in part), tuple(part))
            apart = [Item(context, (requests[i][1],), (i,)) for i in part]
            one_row = len(context) + len(part) * shared.branch_tokens
            items += [shared] if one_row <= _SHARED * sum(len(item.trunk) for item in apart) else apart
    return items


def _with_prefixes(items: list[Item], batch_tokens: int, multiple: int) -> Iterator[tuple[Ids, list[Item]]]:
    """Items in groups that share a prefix; those that share none in a group with an empty one.

    A prefix is worth batches of its own if its contexts fill one, and if it is at least half of them.
    """
    groups: dict[Ids, list[Item]] = {}
    for item in items:
        groups.setdefault(item.context[:_SHORTEST_PREFIX], []).append(item)
    alone: list[Item] = []
    for group in groups.values():
        prefix = _common_prefix([item.context for item in group])
        # A context keeps its last token, whose hidden state the first token of a continuation is asked from.
        fitting = [n for n in LENGTHS if _SHORTEST_PREFIX <= n <= len(prefix) and n % multiple == 0]
        tokens = sum(len(item.trunk) for item in group)
        if not fitting or len(group) == 1 or tokens < batch_tokens or 2 * fitting[-1] * len(group) < tokens:
            alone += group
            continue
        n = fitting[-1]
        yield prefix[:n], [dataclasses.replace(item, context=item.context[n:]) for item in group]
    if alone:
        yield (), alone


def _common_prefix(contexts: list[Ids]) -> Ids:
    """The longest prefix of all contexts that leaves each at least one token."""
    low, high = min(contexts), max(contexts)
    most = min(len(context) for context in contexts) - 1
    n = next((i for i in range(most) if low[i] != high[i]), most)
    return low[:n]


def _batch(group: list[Item], prefix: Ids, row: _Row, rows: int) -> Batch:
    trunk, branches, tokens = row
    asked = _power(max(item.asked for item in group))
    tokens_BS = np.zeros((rows, trunk + branches * tokens), np.int32)
    lengths_B = np.ones(rows, np.int32)
    at_BN = np.zeros((rows, asked), np.int32)
    labels_BN = np.zeros((rows, asked), np.int32)
    places = []
    for b, item in enumerate(group):
        tokens_BS[b, : len(item.trunk)] = item.trunk
        lengths_B[b] = len(item.context) if item.branches else len(item.trunk)
        found, n = [], 0
        for r, (ids, request) in enumerate(zip(item.continuations, item.which, strict=True)):
            end = n + len(ids)
            # The first token is asked for at the context's last position, the others where the one before it stands.
            begin = trunk + r * tokens if item.branches else len(item.context)
            at_BN[b, n] = len(item.context) - 1
            at_BN[b, n + 1 : end] = np.arange(begin, begin + len(ids) - 1)
            labels_BN[b, n:end] = ids
            if item.branches:
                tokens_BS[b, begin : begin + len(ids) - 1] = ids[:-1]
            found.append((request, n, end))
            n = end
        places.append(tuple(found))
    return Batch(prefix, trunk, branches, tokens_BS, lengths_B, at_BN, labels_BN, tuple(places))


def _round(length: int, padded: int, multiple: int, room: int) -> int:
    """The length that `length` is padded to: `padded`, but at most `room`, unless the multiple wants more."""
    return -(-max(min(padded, room), length) // multiple) * multiple


def _rows(count: int, shards: int) -> int:
    """Rows for `count` items: as many on each shard, beyond eight in steps of an eighth."""
    rows = -(-count // shards)
    step = _power(rows) // 8 or 1
    return -(-rows // step) * step * shards


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()
