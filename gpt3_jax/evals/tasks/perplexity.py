r"""Perplexity of published texts (section 3.1.1): the Penn Treebank, and WikiText, which the paper leaves out.

Both are published as words with spaces between: ``it was n't black monday``, ``1 @,@ 000``. GPT-3 did not learn from
such text, so it is scored as people write it. The perplexity is per word of the text as published, so that it can be
compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from gpt3_jax.evals.scoring import Likelihood
from gpt3_jax.evals.tasks import published, rows
from gpt3_jax.evals.tasks.item import Item
from gpt3_jax.evals.tasks.open_settings import STRIDE
from gpt3_jax.evals.tasks.published import DataSet, Found, Options, Split
from gpt3_jax.evals.tasks.task import Open, Task
from gpt3_jax.evals.tasks.wording import rejoined

_OPEN = (
    STRIDE,
    Open(
        "detokenizer",
        "The paper measures as GPT-2's does, whose detokenizers are not published; the default joins clitics, "
        "punctuation, brackets and quotation marks to their words by our own rules and leaves <unk> and N, none reads "
        "the text as it is published.",
        ("rules", "none"),
    ),
    Open(
        "counted",
        "By how many words the likelihood is divided is not said; the default counts each end of a line as a word, as "
        "the literature of these sets does.",
        ("words and line ends", "words"),
    ),
)
_HEADING = re.compile(r"^\s*=\s[^=].*[^=]\s=\s*$")
"""Of an article of WikiText; those of its sections have more signs."""

_BEFORE = ((r" @([-,.])@ ", r"\1"), (r"\\/", "/"))
_AFTER = (
    (r"([(\[{]) ", r"\1"),
    (r"([$#]) (?=[\dN])", r"\1"),
    (r'" (.*?) "', r'"\1"'),
)


def detokenised(line: str) -> str:
    """A line of the Penn Treebank or WikiText as people write it."""
    for pattern, by in _BEFORE:
        line = re.sub(pattern, by, line)
    line = rejoined(line)
    for pattern, by in _AFTER:
        line = re.sub(pattern, by, line)
    return line


def _lines(found: Found, field: str) -> list[str]:
    """The lines of a text file, or the rows of the Hub, which are lines too."""
    if found.hub:
        return [rows.text(row, field, where, empty=True).removesuffix("\n") for where, row in found.rows()]
    return [line for path in found.files for _, line in rows.lines(path)]


def _reader(field: str, cut: Callable[[Sequence[str]], list[list[str]]]) -> published.Read:
    def read(found: Found, options: Options) -> Iterator[Item]:
        for number, lines in enumerate(cut(_lines(found, field))):
            text = "\n".join(
                (detokenised(line.strip()) if options["detokenizer"] == "rules" else line) for line in lines
            )
            words = sum(len(line.split()) for line in lines)
            words += len(lines) if options["counted"] == "words and line ends" else 0
            yield Item(str(number), "", f"{text}\n", words=words)

    return read


def _whole(lines: Sequence[str]) -> list[list[str]]:
    return [list(lines)]


def _articles(lines: Sequence[str]) -> list[list[str]]:
    """An article begins with a line such as `` = Robert <unk> = ``; what stands before the first belongs to it."""
    found: list[list[str]] = []
    for line in lines:
        if not found or (_HEADING.match(line) and any(map(str.strip, found[-1]))):
            found.append([])
        found[-1].append(line)
    return found


def _task(name: str, data_set: DataSet, read: published.Read, about: str) -> Task:
    return published.task(
        name,
        data_set,
        read,
        scoring=Likelihood(),
        metrics=("perplexity per word", "loss per token", "bits per byte"),
        shots=0,
        delimiter="\n",
        options={"detokenizer": "rules", "counted": "words and line ends"},
        open=_OPEN,
        about=about,
    )


def _wikitext(size: int) -> Task:
    folder = f"wikitext-{size}"
    return _task(
        f"wikitext{size}",
        DataSet(
            Split("test", (f"{folder}-raw/wiki.test.raw", f"{folder}/wiki.test.tokens")),
            None,
            (("wikitext", f"{folder}-raw-v1"), ("wikitext", f"{folder}-v1")),
        ),
        _reader("text", _articles),
        f"the test set of WikiText-{size}, by article",
    )


TASKS = (
    _task(
        "ptb",
        DataSet(Split("test", ("ptb.test.txt",)), None, (("ptb_text_only", ""),)),
        _reader("sentence", _whole),
        "the test set of the Penn Treebank",
    ),
    _wikitext(2),
    _wikitext(103),
)
"""WikiText is not in the paper, because it is part of the training data."""
