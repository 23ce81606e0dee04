"""Contamination by the paper's rule (GPT-3 section 4, appendix C): which items of a task share an N-gram with the
training text.

N is the 5th percentile of the lengths of a task's items in words, at least 8 for tasks that are not synthetic and at
most 13. An item is dirty if any of its N-grams stands in any training document.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gpt3_jax.cluster.log import log
from gpt3_jax.errors import UserError
from gpt3_jax.evals.run import TaskItems
from gpt3_jax.evals.scoring import separate
from gpt3_jax.evals.tasks import arithmetic, words
from gpt3_jax.evals.tasks.item import Item
from gpt3_jax.evals.tasks.task import Task
from gpt3_jax.ngrams.corpus import Corpus
from gpt3_jax.ngrams.look import Looked, look
from gpt3_jax.ngrams.scan import Progress
from gpt3_jax.ngrams.tally import of_each
from gpt3_jax.ngrams.wanted import Wanted, wanted
from gpt3_jax.ngrams.words import Rule, normalised

LEAST, MOST, PERCENTILE = 8, 13, 5
SYNTHETIC = frozenset(task.name for task in (*arithmetic.TASKS, *words.TASKS))
"""Tasks to which the least N does not apply."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the paper leaves open, and what it sets for its filter of the training text but not for its study."""

    match: Literal["example", "context", "completion"] = "example"
    """What of an item is compared. The paper says "example"; here that is its context with the right completion, which
    gives its N of 7 for Symbol Insertion, where the context alone gives 6."""
    short: Literal["clean", "whole"] = "clean"
    """Items of fewer than N words: appendix C ignores them, so they are clean; section 4 compares them as a whole."""
    n: int | None = None
    """N for all tasks; None: by the paper's rule."""
    punctuation: Literal["separates", "deleted"] = "separates"
    """Whether punctuation separates words or is deleted. The paper does not say; only the first gives its N of 7 for
    Symbol Insertion (`ngrams.words`)."""
    ignore_above: int | None = None
    """Ignore N-grams that stand in more documents than this: 10 in the paper's filter of the training text, none in its
    study of what was left."""

    def __post_init__(self) -> None:
        for name, value in (("--n", self.n), ("--ignore-above", self.ignore_above)):
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; expected at least 1")

    @property
    def rule(self) -> Rule:
        return Rule(self.punctuation)


@dataclasses.dataclass(frozen=True)
class ItemFound:
    """One item."""

    item: Item
    words: int
    grams: int
    """Distinct N-grams that were looked for."""
    colliding: int
    """Of these, how many stand in the training text."""
    documents: int
    """Documents that hold the most frequent of them."""
    places: tuple[tuple[str, int, str, int], ...]
    """The first: document, character of it, N-gram, how often it stands in this document."""

    @property
    def dirty(self) -> bool:
        return self.colliding > 0


@dataclasses.dataclass(frozen=True)
class TaskFound:
    """A task's items."""

    task: Task
    n: int
    items: tuple[ItemFound, ...]

    @property
    def dirty(self) -> int:
        return sum(each.dirty for each in self.items)

    @property
    def clean(self) -> int:
        return len(self.items) - self.dirty

    @property
    def compared(self) -> int:
        """Items with an N-gram to look for. Without any, nothing is known of the task."""
        return sum(each.grams > 0 for each in self.items)

    @property
    def short(self) -> int:
        """Items of fewer than N words."""
        return sum(each.words < self.n for each in self.items)


@dataclasses.dataclass(frozen=True)
class Study:
    """The items of several tasks against one corpus."""

    tasks: tuple[TaskFound, ...]
    settings: Settings
    looked: Looked
    corpus: Corpus


def choose_n(task: str, lengths: Sequence[int], settings: Settings) -> int:
    """N of a task: the 5th percentile of its items' lengths in words, clipped to `LEAST` and `MOST`.

    The percentile is the length that one item in twenty does not reach or just reaches (the nearest rank).
    """
    if settings.n is not None:
        return settings.n
    ordered = sorted(lengths)
    rank = math.ceil(PERCENTILE / 100 * len(ordered))
    return min(max(ordered[max(rank, 1) - 1], 1 if task in SYNTHETIC else LEAST), MOST)


def text_of(task: Task, item: Item, settings: Settings) -> str:
    """The text of an item that is compared; not the task's instruction, which all items share."""
    if settings.match == "context":
        return item.context
    if settings.match == "completion":
        return item.completion
    return item.context + separate(item.context, task.separator) + item.completion


def study(
    loaded: Sequence[TaskItems],
    corpus: Corpus,
    settings: Settings | None = None,
    workers: int = 1,
    folder: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    places: int = 3,
) -> Study:
    """Looks for the items of tasks in a corpus.

    Args:
        folder: what the corpus holds is kept there, so that the same items need not be looked for again.
        places: how many places to name for each dirty item.

    Raises:
        UserError, RunError: as `look`.
    """
    settings = settings or Settings()
    texts = [[text_of(each.task, item, settings) for item in each.evaluated] for each in loaded]
    lengths = [[len(normalised(text, settings.rule).split()) for text in of_task] for of_task in texts]
    ns = [choose_n(each.task.name, found, settings) for each, found in zip(loaded, lengths, strict=True)]
    # All items that are cut into grams of the same length are looked for together.
    groups: dict[int, list[tuple[int, int]]] = {}
    for number, (n, of_task) in enumerate(zip(ns, lengths, strict=True)):
        for item, length in enumerate(of_task):
            groups.setdefault(min(n, max(length, 1)) if settings.short == "whole" else n, []).append((number, item))
    lists = [wanted([texts[a][b] for a, b in groups[n]], n, settings.rule) for n in sorted(groups)]
    looked = look(corpus, lists, workers, folder, on_progress)
    rows = _Places(looked.tally.places, corpus)
    found: list[list[ItemFound]] = [[] for _ in loaded]
    at = {}
    for n, grams, part in zip(sorted(groups), lists, of_each(looked.tally, lists), strict=True):
        documents = looked.tally.documents[part]
        if settings.ignore_above is not None:
            documents = np.where(documents > settings.ignore_above, 0, documents)
        for text, (number, item) in enumerate(groups[n]):
            at[number, item] = (grams, text, documents, part.start)
    for (number, item), (grams, text, documents, base) in sorted(at.items(), key=lambda pair: pair[0]):
        own = np.unique(grams.of_text(text))
        hit = own[documents[own] > 0]
        found[number].append(
            ItemFound(
                loaded[number].evaluated[item],
                lengths[number][item],
                len(own),
                len(hit),
                int(documents[hit].max(initial=0)),
                tuple(place for gram in hit[:places].tolist() for place in rows.first(gram + base, grams, gram)),
            )
        )
    tasks = [TaskFound(each.task, n, tuple(items)) for each, n, items in zip(loaded, ns, found, strict=True)]
    return Study(tuple(tasks), settings, looked, corpus)


def require_compared(found: Study) -> None:
    """Warns of tasks of which nothing could be compared.

    Raises:
        UserError: that is so of all.
    """
    without = [task for task in found.tasks if not task.compared]
    if len(without) == len(found.tasks):
        longest = max(each.words for task in without for each in task.items)
        raise UserError(
            f"no item has N = {min(task.n for task in without)} words (the longest has {longest}), so nothing can be "
            "compared; give a smaller --n, or --short whole"
        )
    for task in without:
        log.warning(f"{task.task.name}: no item has N = {task.n} words; nothing of it was compared")


class _Places:
    """Places of grams, by gram."""

    def __init__(self, rows: np.ndarray, corpus: Corpus) -> None:
        self._rows, self._corpus = rows, corpus

    def first(self, gram: int, of: Wanted, number: int) -> list[tuple[str, int, str, int]]:
        """The first place of a gram."""
        at = int(np.searchsorted(self._rows[:, 0], gram))
        _, file, document, offset, count = self._rows[at].tolist()
        return [(self._corpus.name(file, document), offset, of.gram(number), count)]


def records(found: Study) -> list[Mapping[str, Any]]:
    """A record for each item, for a file of JSON lines."""
    return [
        {
            "task": task.task.name,
            "item": each.item.id,
            "fingerprint": each.item.fingerprint(),
            "n": task.n,
            "words": each.words,
            "dirty": each.dirty,
            "grams": each.grams,
            "colliding": each.colliding,
            "documents": each.documents,
            "places": [
                {"document": document, "character": offset, "gram": gram, "times": times}
                for document, offset, gram, times in each.places
            ],
        }
        for task in found.tasks
        for each in task.items
    ]
