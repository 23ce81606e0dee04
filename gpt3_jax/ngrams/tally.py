"""Which wanted N-grams a corpus holds: in how many documents, how often, and where first."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from gpt3_jax.ngrams.corpus import Piece, Reader
from gpt3_jax.ngrams.finder import Finder
from gpt3_jax.ngrams.wanted import Wanted

PLACES = 16
"""Places that are kept of each gram: those of the first documents that hold it."""
_ROWS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Counter:
    """Counts the wanted grams of each document. A collector for `scan`.

    Args:
        wanted: all of one rule.
    """

    wanted: tuple[Wanted, ...]

    def collect(self, reader: Reader, piece: Piece) -> np.ndarray:
        """Rows of gram, document, character of its first place, and how often it stands there, int64 [rows, 4]; by
        document in the corpus' order, then by gram."""
        gathered: list[np.ndarray] = []
        rows = 0
        for found in Finder(self.wanted[0].rule, self.wanted).find(reader.parts(piece)):
            ones = np.ones_like(found.gram)
            gathered.append(_summed(np.stack([found.gram, found.document, found.offset, ones], axis=1)))
            rows += len(gathered[-1])
            if rows > _ROWS:
                gathered = [_summed(np.concatenate(gathered))]
                rows = len(gathered[0]) // 2  # the next time when as many more are there
        return _summed(np.concatenate(gathered)) if gathered else np.empty((0, 4), np.int64)


def _summed(rows: np.ndarray) -> np.ndarray:
    """One row for each gram and document: the first place, all occurrences."""
    order = np.lexsort((rows[:, 2], rows[:, 0], rows[:, 1]))
    rows = rows[order]
    first = np.flatnonzero((np.diff(rows[:, :2], axis=0, prepend=-1) != 0).any(axis=1))
    kept = rows[first]
    if len(first):
        kept[:, 3] = np.add.reduceat(rows[:, 3], first)
    return kept


class Tally:
    """Sums over the pieces of a corpus. Memory: some 24 bytes for each wanted gram, 40 for each place that is kept."""

    def __init__(self, grams: int) -> None:
        self.documents = np.zeros(grams, np.int64)
        """Documents that hold each gram."""
        self.occurrences = np.zeros(grams, np.int64)
        self._places: list[np.ndarray] = []

    def add(self, file: int, rows: np.ndarray) -> None:
        """Adds what `Counter.collect` found in a piece."""
        if not len(rows):
            return
        order = np.argsort(rows[:, 0], kind="stable")
        gram = rows[order, 0]
        starts = np.flatnonzero(np.diff(gram, prepend=-1) != 0)
        rank = np.arange(len(gram)) - np.repeat(starts, np.diff(np.append(starts, len(gram))))
        kept = np.sort(order[self.documents[gram] + rank < PLACES])
        if len(kept):
            self._places.append(np.insert(rows[kept], 1, file, axis=1))
        np.add.at(self.documents, rows[:, 0], 1)
        np.add.at(self.occurrences, rows[:, 0], rows[:, 3])

    @property
    def places(self) -> np.ndarray:
        """Rows of gram, file, document, character of its first place there, and how often it stands there, int64
        [rows, 5], by gram; of each gram the first `PLACES` documents."""
        rows = np.concatenate(self._places) if self._places else np.empty((0, 5), np.int64)
        return rows[np.argsort(rows[:, 0], kind="stable")]

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, for a file."""
        return {"documents": self.documents, "occurrences": self.occurrences, "places": self.places}

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> Tally:
        """The tally that `arrays` returned."""
        tally = cls(0)
        tally.documents, tally.occurrences = arrays["documents"], arrays["occurrences"]
        tally._places = [arrays["places"]]
        return tally


def of_each(tally: Tally, wanted: Sequence[Wanted]) -> list[slice]:
    """The grams of each `Wanted` among those of the tally."""
    ends = np.cumsum([0, *map(len, wanted)]).tolist()
    return [slice(a, b) for a, b in itertools.pairwise(ends)]
