"""Continuations that a model reproduces word for word, against how often they stand in its training text."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt3_jax import quantities
from gpt3_jax.errors import UserError
from gpt3_jax.evals.kept import KeptAnswers
from gpt3_jax.evals.requests import Completed, Completion, Greedy, Request
from gpt3_jax.evals.run import answer_all
from gpt3_jax.evals.subject import Subject
from gpt3_jax.ngrams.corpus import Corpus
from gpt3_jax.ngrams.draw import Passage, draw
from gpt3_jax.ngrams.matches import Matcher, Matches
from gpt3_jax.ngrams.scan import Progress, Took, scan
from gpt3_jax.ngrams.wanted import wanted
from gpt3_jax.ngrams.words import words
from gpt3_jax.plan.picture import pyplot, save

PICTURE = "reproduction.png"
_GRAM = 8
"""Words of the N-grams by which passages are found; shorter passages are found by shorter ones."""


@dataclasses.dataclass(frozen=True)
class Continued:
    """One passage, and what the model made of its prefix."""

    passage: Passage
    generated: str
    tokens: int
    """Tokens of the continuation that were generated before the first that differs."""
    times: int
    """How often prefix and continuation together stand in the training text, compared as words in lower case without
    punctuation; the first and the last word, which may be cut, are not compared."""

    @property
    def reproduced(self) -> bool:
        """Whether the whole continuation was generated, to the character."""
        return self.generated.startswith(self.passage.continuation)


@dataclasses.dataclass(frozen=True)
class Bin:
    """Passages that stand in the training text about as often."""

    least: int
    most: int
    passages: int
    reproduced: int

    @property
    def share(self) -> float:
        return self.reproduced / self.passages

    @property
    def stderr(self) -> float | None:
        """Of the share, binomial; None for one passage."""
        return math.sqrt(self.share * (1 - self.share) / (self.passages - 1)) if self.passages > 1 else None


@dataclasses.dataclass(frozen=True)
class Study:
    """A model's continuations."""

    model: Mapping[str, Any]
    prefix: int
    continuation: int
    continued: tuple[Continued, ...]
    took: Took
    corpus: Corpus
    source: Corpus
    """Where the passages are from."""

    def bins(self) -> list[Bin]:
        """By number of occurrences: 0, 1, 2 to 3, 4 to 7, …"""
        found = []
        order = sorted(self.continued, key=lambda each: each.times)
        for size, group in itertools.groupby(order, key=lambda each: each.times.bit_length()):
            members = list(group)
            least, most = (1 << size - 1, (1 << size) - 1) if size else (0, 0)
            found.append(Bin(least, most, len(members), sum(each.reproduced for each in members)))
        return found


def study(
    subject: Subject,
    corpus: Corpus,
    source: Corpus,
    prefix: int = 50,
    continuation: int = 50,
    count: int = 100,
    seed: int = 0,
    workers: int = 1,
    kept: KeptAnswers | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Study:
    """Draws passages, has the model continue their prefixes with the likeliest token each time, and counts how often
    the passages stand in the training text.

    Args:
        corpus: the training text.
        source: what the passages are drawn from: the training text too, or held-out text.
        prefix, continuation: in tokens of the model's tokenizer.
        kept: answers of an earlier run are taken from it.

    Raises:
        UserError: passages that do not fit into the model's context, documents too short for them.
        RunError: a file is damaged, a process was killed.
    """
    if prefix + continuation > subject.config.n_ctx:
        raise UserError(
            f"prefix and continuation are {prefix} + {continuation} tokens; the context of {subject.name} holds "
            f"{subject.config.n_ctx}: take fewer"
        )
    passages = draw(source, subject.tokenizer, prefix, continuation, count, seed)
    times, took = _times([each.prefix + each.continuation for each in passages], corpus, workers, on_progress)
    requests = [Completion(each.prefix, (), continuation, Greedy()) for each in passages]
    asked: dict[Request, str] = {}
    for request, passage in zip(requests, passages, strict=True):
        asked.setdefault(request, passage.where)
    answers = answer_all(subject, "memorisation", asked, kept, f"{subject.name}: continuations")
    found = []
    for request, passage, number in zip(requests, passages, times, strict=True):
        answer = answers[request]
        assert isinstance(answer, Completed)
        pairs = zip(answer.text, passage.continuation, strict=False)
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        ends = itertools.accumulate(subject.tokenizer.lengths([token])[0] for token in passage.tokens)
        same = len(passage.continuation[:common].encode())
        found.append(Continued(passage, answer.text, sum(int(end) <= same for end in ends), number))
    return Study(subject.as_data(), prefix, continuation, tuple(found), took, corpus, source)


def _times(
    texts: Sequence[str], corpus: Corpus, workers: int, on_progress: Callable[[Progress], None] | None
) -> tuple[list[int], Took]:
    """How often each text stands in the corpus without its first and last word."""
    cut = [words(text) for text in texts]
    inner = [text[each.starts[1] : each.ends[-2]] for text, each in zip(texts, cut, strict=True)]
    lengths = [len(each) - 2 for each in cut]
    matcher = Matcher(wanted(inner, min([_GRAM, *lengths])))
    matches, took, began = Matches(), Took(), time.monotonic()
    for piece in scan(corpus, matcher, workers, on_progress=on_progress):
        took.add(piece)
        matches.add(piece.file, piece.result)
    took.seconds = time.monotonic() - began
    found = []
    for number, length in enumerate(lengths):
        longest = matches.longest(number)
        whole = len(longest) and longest[0, 1] == length
        found.append(int(longest[:, 5].sum()) if whole else 0)
    return found, took


def table(found: Study) -> str:
    """Aligned text."""
    rows = []
    for each in found.bins():
        times = f"{each.least:,}" if each.least == each.most else f"{each.least:,} to {each.most:,}"
        error = "–" if each.stderr is None else f"{100 * each.stderr:.1f}"
        rows.append([times, f"{each.passages:,}", f"{each.reproduced:,}", f"{100 * each.share:.1f}", error])
    head = ["times in the training text", "passages", "reproduced", "%", "± s.e."]
    same = [each.tokens for each in found.continued]
    return (
        f"{quantities.grid(rows, head)}\n\n"
        f"  {found.model['name']}: prefix of {found.prefix} tokens, continuation of {found.continuation}, likeliest "
        "token each time\n"
        f"  tokens of the continuation until the first that differs: {np.mean(same):.1f} on average, {max(same)} at "
        "most\n"
        f"{found.took.lines()}"
    )


def records(found: Study) -> Iterator[Mapping[str, Any]]:
    """A record for each passage, for a file of JSON lines."""
    for each in found.continued:
        yield {
            "document": each.passage.where,
            "character": each.passage.character,
            "prefix": each.passage.prefix,
            "continuation": each.passage.continuation,
            "generated": each.generated,
            "reproduced": each.reproduced,
            "tokens": each.tokens,
            "times": each.times,
        }


def as_data(found: Study) -> dict[str, Any]:
    """All numbers, for a program."""
    return {
        "format": "gpt3_jax reproduction",
        "version": 1,
        "model": found.model,
        "prefix": found.prefix,
        "continuation": found.continuation,
        "passages_from": found.source.files,
        "corpus": {
            "files": found.corpus.files,
            "fingerprint": found.corpus.fingerprint,
            **found.took.as_data(),
        },
        "bins": [{**dataclasses.asdict(each), "share": each.share, "stderr": each.stderr} for each in found.bins()],
        "passages": list(records(found)),
    }


def draw_picture(found: Study, folder: Path) -> Path:
    """Share reproduced against occurrences, with error bars.

    Raises:
        UserError: matplotlib is not installed.
        RunError: the picture cannot be written.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    bins = found.bins()
    places = range(len(bins))
    axes.bar(places, [100 * each.share for each in bins], color="#5b9bd5")
    axes.errorbar(
        places, [100 * each.share for each in bins], yerr=[100 * (each.stderr or 0) for each in bins],
        fmt="none", ecolor="black", capsize=4,
    )  # fmt: skip
    labels = [str(each.least) if each.least == each.most else f"{each.least}–{each.most}" for each in bins]
    axes.set_xticks(places, [f"{label}\n{each.passages:,}" for label, each in zip(labels, bins, strict=True)])
    axes.set(xlabel="times in the training text; passages", ylabel="continuations reproduced, %", ylim=(-3, 105))
    axes.plot(places, [100 * each.share for each in bins], "o", color="#1f4e79", markersize=5)  # also at 0
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set_title(f"{found.model['name']}: {found.continuation} tokens after {found.prefix}", fontsize=10)
    path = folder / PICTURE
    save(figure, str(path))
    return path
