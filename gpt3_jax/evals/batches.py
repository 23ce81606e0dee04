"""Requests in token ids, arranged for the device: few shapes, shared contexts once, shared prefixes once.

`arrange` is a pure function of the requests. What it makes does not change a likelihood, but for rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from gpt3_jax.inference.lengths import LENGTHS, padded_length

Ids = tuple[int, ...]

MOST_BRANCHES = 16
"""Continuations of one context in a row; more of them get rows of their own."""
_SHORTEST_PREFIX = 64
_PREFIX_USERS = 4
"""A common prefix is computed apart if it has so many tokens, and so many contexts begin with it."""


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
    requests: Sequence[tuple[Ids, Ids]], n_ctx: int, batch_tokens: int, shards: int = 1, multiple: int = 1
) -> Iterator[Batch]:
    """All requests, (context ids, continuation ids), each in one batch, the longest first.

    Args:
        requests: context and continuation have at least one token each, and without its last token fit n_ctx.
        batch_tokens: tokens of a batch on one device, padding included; a longer row is a batch of its own.
        shards: the number of rows is a multiple of it.
        multiple: trunk and branches are padded to multiples of it (a kernel's block, the tensor axis).
    """
    for prefix, items in _with_prefixes(_items(requests)):
        room = n_ctx - len(prefix)

        def size(item: Item, room: int = room) -> tuple[int, int, int]:
            trunk = _round(len(item.trunk), multiple, room)
            if not item.branches:
                return trunk, 0, 0
            return trunk, _power(len(item.branches)), _round(item.branch_tokens, multiple, n_ctx)

        items = sorted(items, key=lambda item: (size(item), item.asked, item.which), reverse=True)
        first = 0
        while first < len(items):
            trunk, branches, tokens = size(items[first])
            rows = max(1, batch_tokens // (trunk + branches * tokens)) * shards
            # Rows that are left take shorter items too: less padding than a program of their own would cost.
            group = [item for item in items[first : first + rows] if 3 * size(item)[0] >= 2 * trunk]
            first += len(group)
            branches = max(size(item)[1] for item in group)
            tokens = max(size(item)[2] for item in group)
            yield _batch(group, prefix, trunk, branches, tokens, min(rows, _rows(len(group), shards)))


def _items(requests: Sequence[tuple[Ids, Ids]]) -> list[Item]:
    by_context: dict[Ids, list[int]] = {}
    for i, (context, _) in enumerate(requests):
        by_context.setdefault(context, []).append(i)
    return [
        Item(context, tuple(requests[i][1] for i in part), tuple(part))
        for context, which in by_context.items()
        for part in (which[n : n + MOST_BRANCHES] for n in range(0, len(which), MOST_BRANCHES))
    ]


def _with_prefixes(items: list[Item]) -> Iterator[tuple[Ids, list[Item]]]:
    """Items in groups that share a prefix; those that share none in a group with an empty one."""
    groups: dict[Ids, list[Item]] = {}
    for item in items:
        groups.setdefault(item.context[:_SHORTEST_PREFIX], []).append(item)
    alone: list[Item] = []
    for group in groups.values():
        prefix = _common_prefix([item.context for item in group])
        # A context keeps its last token, whose hidden state the first token of a continuation is asked from.
        fitting = [n for n in LENGTHS if _SHORTEST_PREFIX <= n <= len(prefix)]
        if len(group) < _PREFIX_USERS or not fitting:
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


def _batch(group: list[Item], prefix: Ids, trunk: int, branches: int, tokens: int, rows: int) -> Batch:
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


def _round(length: int, multiple: int, room: int) -> int:
    """The length that `length` is padded to: at most `room`, unless the multiple wants more."""
    padded = max(padded_length(length, 1, room), length)
    return -(-padded // multiple) * multiple


def _rows(count: int, shards: int) -> int:
    """Rows for `count` items: a power of two on each shard."""
    return _power(-(-count // shards)) * shards


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()
