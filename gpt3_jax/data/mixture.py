"""The order of the data: sequence index -> (source, epoch, sequence within the source), in constant time and memory.

It combines two exact algorithms, both in integers. A periodic schedule spreads the sources so that every prefix holds
each source's share to within one sequence. A Feistel permutation, keyed by (seed, source, epoch), shuffles each epoch
of a source without a table. The order does not depend on hosts, batches or restarts.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from gpt3_jax.errors import UserError

MAX_PERIOD = 1_000_000
"""Maximum length of a schedule; allows weights with six decimals that sum to 1."""

_ROUNDS = 6
_U64 = np.uint64


@dataclasses.dataclass(frozen=True)
class Draw:
    """The location of sequences of the stream. Each field is int64 [n]."""

    source: np.ndarray
    """Index of the source in the mixture."""
    epoch: np.ndarray
    """How many times the source was exhausted before."""
    rank: np.ndarray
    """Position in the shuffled order of this epoch."""
    sequence: np.ndarray
    """Index of the sequence within the source, as stored on disk."""


class Mixture:
    """An endless, shuffled mixture of sources.

    Args:
      weights: relative share of each source, any positive numbers. Decimals are taken literally (0.1 is one tenth).
      sizes: sequences in each source.
      seed: 0 to 2**63 - 1.

    Raises:
      UserError: a weight is not positive, a source has no sequences, or the weights do not reduce to whole numbers with
        a sum of at most MAX_PERIOD.
    """

    def __init__(self, weights: Sequence[float], sizes: Sequence[int], seed: int) -> None:
        if len(weights) != len(sizes) or not weights:
            raise UserError(f"{len(weights)} weights for {len(sizes)} sources; expected one each, and at least one")
        for number, size in enumerate(sizes):
            if size < 1:
                raise UserError(f"source {number} of the mixture has {size} sequences; expected at least 1")
        self.parts = integer_weights(weights)
        self.period = sum(self.parts)
        self._source_at, self._count_at = _schedule(self.parts)
        self._parts = np.array(self.parts, np.int64)
        self._sizes = np.array(sizes, np.int64)
        self._seed_key = _mix64(np.array([seed], _U64))

    def draw(self, indices: np.ndarray) -> Draw:
        """Locates the sequences `indices` (int64 [n], each from 0) of the stream."""
        indices = np.asarray(indices, np.int64)
        if indices.size and indices.min() < 0:
            raise ValueError(f"sequence index {indices.min()} is negative")
        cycle, slot = np.divmod(indices, self.period)
        source = self._source_at[slot].astype(np.int64)
        nth = cycle * self._parts[source] + self._count_at[slot]
        size = self._sizes[source]
        epoch, rank = np.divmod(nth, size)
        key = _mix64(_mix64(self._seed_key ^ source.astype(_U64)) ^ epoch.astype(_U64))
        return Draw(source, epoch, rank, permute(rank, size, key))


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """The smallest whole numbers in the proportions of `weights`, each taken as its shortest decimal."""
    for weight in weights:
        if not (weight > 0 and math.isfinite(weight)):
            raise UserError(f"weight {weight} of a source is not a positive number")
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(part.denominator for part in exact))
    parts = [int(part * scale) for part in exact]
    divisor = math.gcd(*parts)
    parts = [part // divisor for part in parts]
    if sum(parts) > MAX_PERIOD:
        total = sum(exact)
        rounded = ", ".join(str(max(round(float(part / total), 4), 0.0001)) for part in exact)
        raise UserError(
            f"weights {', '.join(map(str, weights))} reduce to whole numbers with the sum {sum(parts)}, above "
            f"{MAX_PERIOD}; round them so that their shares stay exact, for example {rounded}"
        )
    return tuple(parts)


def _schedule(parts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """One period of the mixture: the source at each slot, and how often that source came before within the period.

    Item k of a source with `part` of `period` slots must be placed in slot floor(k period / part) or later, and before
    slot ceil((k + 1) period / part). Earliest-deadline-first scheduling meets all these windows if every slot is used
    (proportionate fairness: Baruah, Cohen, Plaxton and Varvel 1996). The windows are equivalent to "within one sequence
    of the exact share at every prefix".
    """
    period = sum(parts)
    source_at = np.empty(period, np.int32)
    count_at = np.empty(period, np.int64)
    waiting = [(0, number, 0) for number in range(len(parts))]  # (release slot, source, item)
    ready: list[tuple[int, int, int]] = []  # (deadline, source, item)
    for slot in range(period):
        while waiting and waiting[0][0] <= slot:
            _, number, item = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(item + 1) * period // parts[number]), number, item))
        _, number, item = heapq.heappop(ready)
        source_at[slot], count_at[slot] = number, item
        if item + 1 < parts[number]:
            heapq.heappush(waiting, ((item + 1) * period // parts[number], number, item + 1))
    return source_at, count_at


def permute(ranks: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A pseudorandom permutation of range(size), evaluated at each rank; all arguments and the result are [n].

    A Feistel network on Z_a x Z_b with a = ceil(sqrt(size)) and b = ceil(size / a). Few of its a * b values lie outside
    the range. These are permuted again until they fall inside (cycle walking), which keeps the map a bijection.
    """
    size = sizes.astype(_U64)
    a = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(_U64)
    b = (size + a - _U64(1)) // a
    value = ranks.astype(_U64)
    todo = np.arange(len(value))
    while todo.size:
        value[todo] = _feistel(value[todo], a[todo], b[todo], keys[todo])
        todo = todo[value[todo] >= size[todo]]
    return value.astype(np.int64)


def _feistel(value: np.ndarray, a: np.ndarray, b: np.ndarray, key: np.ndarray) -> np.ndarray:
    left, right = value // b, value % b
    for round_number in range(0, _ROUNDS, 2):
        left = (left + _below(_mix64(right ^ key) + _U64(round_number), a)) % a
        right = (right + _below(_mix64(left ^ ~key) + _U64(round_number + 1), b)) % b
    joined: np.ndarray = left * b + right
    return joined


def _below(value: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Maps hashes to range(bound), bound < 2**32, with a multiplication instead of a slow modulo."""
    scaled: np.ndarray = ((_mix64(value) >> _U64(32)) * bound) >> _U64(32)
    return scaled


def _mix64(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): every input bit affects every output bit. Wraps."""
    value = value + _U64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> _U64(27))) * _U64(0x94D049BB133111EB)
    value = value ^ (value >> _U64(31))
    return value
