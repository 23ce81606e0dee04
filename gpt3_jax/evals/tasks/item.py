"""One example of a task, in the strings that a prompt is made of."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Item:
    """One example, as a demonstration and as what is scored.

    A prompt shows ``context``, the task's separator and ``completion``. Neither has the delimiter between examples or
    the separator in it.
    """

    id: str
    """Unique within the task; the demonstrations are drawn by it."""
    context: str
    completion: str
    """The right completion, as a demonstration shows it."""
    choices: tuple[str, ...] = ()
    """Completions that are compared; empty for tasks that are scored by generation or as text."""
    right: tuple[int, ...] = ()
    """Indices of the right choices, or of the right one of `contexts`; several may be right."""
    contexts: tuple[str, ...] = ()
    """For partial evaluation: the context with each candidate in its place. `completion` follows all of them."""
    fillings: tuple[str, ...] = ()
    """What stands in a blank in each choice, for metrics that compare it: the entities of ReCoRD."""
    answers: tuple[str, ...] = ()
    """All accepted answers of a generated completion; empty: `completion` alone."""
    spans: tuple[tuple[str, ...], ...] = ()
    """`answers` span by span, where one may have several."""
    joiner: str = ""
    """What stands between several spans in a completion."""
    unanswerable: str = ""
    """The completion that says that the question has no answer; empty: all questions have one."""
    words: int | None = None
    """Words by which the perplexity of a text is counted; None: its own, separated by white space."""
    zero_shot: str | None = None
    """The context without demonstrations, for tasks that have another form there; None: `context`."""
    zero_shot_separator: str | None = None
    """Between `zero_shot` and the completion; None: the task's separator."""
    group: str = ""
    """The story, paragraph or article that several examples are about: none of them is a demonstration for another,
    because it would show the item's text, and in a dialogue its answer. Empty: it has a text of its own."""

    @property
    def accepted(self) -> tuple[str, ...]:
        return self.answers or (self.completion,)

    def fingerprint(self) -> str:
        """sha256 over all of the example."""
        return hashlib.sha256(repr(dataclasses.astuple(self)).encode("utf-8", "surrogatepass")).hexdigest()


@dataclasses.dataclass(frozen=True)
class Items:
    """A task's examples, read or generated."""

    test: Sequence[Item]
    train: Sequence[Item] | None
    """Where demonstrations are drawn from: the training split; `test` itself for a task that has no other; None if
    there is none, so that only K = 0 can be evaluated."""
    source: str
    """Where they come from, in words: a file, or a generator and its seed."""

    def fingerprint(self) -> str:
        """sha256 over all examples."""
        digest = hashlib.sha256()
        for split in (self.test, self.train or ()):
            digest.update(f"{len(split)}\n".encode())
            for item in split:
                digest.update(repr(dataclasses.astuple(item)).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()
