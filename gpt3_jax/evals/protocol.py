"""The paper's protocol (GPT-3 section 2.4): K demonstrations for each item, and the requests that score it.

Demonstrations are drawn without replacement from the task's training split, never the item itself, by a generator
seeded by (seed, task, item). A draw for a smaller K is the beginning of the draw for a larger one. If a prompt does not
fit into the context, demonstrations are dropped, the last drawn first; the item is never cut. An item that does not
fit without any is left out.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Literal

from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.errors import UserError
from gpt3_jax.evals import prompts
from gpt3_jax.evals.encoding import encode
from gpt3_jax.evals.requests import Completion, Continuation, Request
from gpt3_jax.evals.tasks.item import Item, Items
from gpt3_jax.evals.tasks.task import Task

Shots = int | Literal["max"]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An item with its demonstrations and requests."""

    item: Item
    seed: int
    shots: int
    """Demonstrations in the prompt."""
    dropped: int
    """Demonstrations that did not fit."""
    lacking: int
    """Demonstrations that there were not: no other example was left to draw."""
    demonstrations: tuple[str, ...]
    """Ids of the items shown, in their order."""
    prompts: tuple[str, ...]
    """One for each of the item's contexts; none for a text."""
    requests: tuple[Request, ...]


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """An item that does not fit into the context even without demonstrations."""

    item: Item
    seed: int
    tokens: int
    """Of its longest request."""


def draw(items: Items, item: Item, seed: int, task: Task) -> Iterator[Item]:
    """Demonstrations for `item`, in the order in which they are drawn, until there are none left.

    An example with the item's own text is left out as the item itself is, since generated and published sets repeat
    some. So are those of the item's group.
    """
    pool = items.train or ()
    who = "" if task.draw == "fixed" else item.id
    # random.random() of a text seed is the same in every version of Python.
    generator = random.Random(f"{seed}\n{task.name}\n{who}")
    moved: dict[int, int] = {}  # a Fisher-Yates shuffle of which only the places it touched are kept
    for n in range(len(pool)):
        k = n + int(generator.random() * (len(pool) - n))
        picked = pool[moved.get(k, k)]
        moved[k] = moved.get(n, n)
        if not same(picked, item) and not (item.group and picked.group == item.group):
            yield picked


def same(one: Item, other: Item) -> bool:
    """Whether two examples are the same one, or ask the same thing. Those with several contexts differ in the right one
    alone where they are twins, as Winograd's schemas are."""
    if one.contexts or other.contexts:
        return sorted(one.contexts) == sorted(other.contexts)
    return one.context == other.context


class Preparer:
    """Makes the prompts of one task for a tokenizer and a context of `n_ctx` tokens."""

    def __init__(self, task: Task, items: Items, tokenizer: Tokenizer, n_ctx: int) -> None:
        self._task, self._items, self._tokenizer, self._n_ctx = task, items, tokenizer, n_ctx
        self._shown = functools.cache(lambda item: prompts.demonstration(task, item))
        self._length = functools.cache(lambda item: self._count(task.delimiter + self._shown(item)))

    def prepare(self, item: Item, shots: Shots, seed: int) -> Prepared | LeftOut:
        """Draws demonstrations for an item, fits them into the context, and makes the item's requests."""
        task = self._task
        if not task.scoring.prompted:
            return Prepared(item, seed, 0, 0, 0, (), (), tuple(task.scoring.requests((), task.separator, item)))
        wanted = len(self._items.train or ()) if shots == "max" else shots
        drawn = itertools.islice(draw(self._items, item, seed, task), wanted)
        # First by the tokens of each demonstration alone, which is near, because few tokens merge at the borders.
        shown = self._estimated(item, drawn) if wanted else []
        # Then by the tokens of the whole: dropped until it fits, or added until it does not.
        over: list[Item] = []
        while shown and self._tokens(item, shown) > self._n_ctx:
            over = [shown.pop()]
        while not over and (more := next(drawn, None)) is not None:
            if self._tokens(item, [*shown, more]) > self._n_ctx:
                over = [more]
            else:
                shown.append(more)
        whole, requests = self._requests(item, shown)
        if not shown and (tokens := self._longest(requests)) > self._n_ctx:
            return LeftOut(item, seed, tokens)
        missing = 0 if shots == "max" else wanted - len(shown)
        # Where one was drawn that did not fit, that is why; else there was none left to draw.
        dropped, lacking = (missing, 0) if over else (0, missing)
        return Prepared(item, seed, len(shown), dropped, lacking, tuple(each.id for each in shown), whole, requests)

    def _estimated(self, item: Item, drawn: Iterator[Item]) -> list[Item]:
        """As many of the demonstrations drawn as fit by the sum of their own tokens; the next is left in `drawn`."""
        left = self._n_ctx - self._longest(self._requests(item, (), after_some=True)[1])
        shown: list[Item] = []
        while left > 0 and (candidate := next(drawn, None)) is not None:
            shown.append(candidate)
            left -= self._length(candidate)
        return shown

    def _tokens(self, item: Item, shown: Sequence[Item]) -> int:
        return self._longest(self._requests(item, shown)[1])

    def _longest(self, requests: Sequence[Request]) -> int:
        return max(tokens_of(request, self._tokenizer) for request in requests)

    def _requests(
        self, item: Item, shown: Sequence[Item], after_some: bool = False
    ) -> tuple[tuple[str, ...], tuple[Request, ...]]:
        """The prompts and requests of an item after these demonstrations. With `after_some`, instruction and context
        have the form that they have after some, though none are shown."""
        task, texts = self._task, [self._shown(each) for each in shown]
        shots = 1 if after_some else len(shown)
        whole = tuple(prompts.prompt(task, texts, each, shots) for each in prompts.contexts(task, item, shots))
        return whole, tuple(task.scoring.requests(whole, task.separator, item))

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text))


def tokens_of(request: Request, tokenizer: Tokenizer) -> int:
    """Tokens of context that a request takes: the prompt and what is scored after it but its last token, which the
    model need not read; or what may be generated after it."""
    if isinstance(request, Continuation):
        encoded = encode(request.context, request.continuation, tokenizer)
        return len(encoded.context) + len(encoded.continuation) - 1
    if isinstance(request, Completion):
        return max(len(tokenizer.encode(request.prompt)), 1) + request.max_tokens
    return 0


def check_shots(task: Task, items: Items, shots: Shots) -> None:
    """Raises UserError if K demonstrations cannot be drawn for the task."""
    if line := too_few(task, items, shots):
        raise UserError(line)


def too_few(task: Task, items: Items, shots: Shots) -> str:
    """One line that says why K demonstrations cannot be drawn for the task; empty if they can."""
    if shots == 0 or not task.scoring.prompted:
        return ""
    if items.train is None:
        return (
            f"{items.source}: task {task.name} has no {task.splits[1]} split to draw {shots} demonstrations from; "
            "give one, or evaluate with --shots 0 (in training evals.shots)"
        )
    there = len(items.train) - (1 if items.train is items.test else 0)
    if there < (1 if shots == "max" else shots):
        of = "other than the item itself " if items.train is items.test else ""
        verb = "is" if there == 1 else "are"
        return (
            f"task {task.name}, {items.source}: {shots} demonstrations were asked for, and there {verb} {there} {of}"
            f"to draw from; give more examples, or evaluate it by itself with --shots {there} at most (in training "
            "evals.shots)"
        )
    return ""


def chance(items: Sequence[Item]) -> float | None:
    """Expected accuracy of a random choice, in per cent; None if the task has no choices."""
    if not all(item.choices or item.contexts for item in items):
        return None
    return 100 * sum(len(item.right) / (len(item.choices) or len(item.contexts)) for item in items) / len(items)
