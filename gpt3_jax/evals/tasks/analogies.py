"""SAT analogies from a user's file: ``analogies:FILE`` (section 3.9.3, Figure G.12).

The questions are not free, so none come with the package. Two formats are read. JSON lines, one question each, two to
five choices, `answer` counted from 0:

    {"stem": ["lull", "trust"], "choices": [["balk", "fortitude"], ["cajole", "compliance"]], "answer": 1}

And blocks of text with an empty line between them, as in Turney's collection: a line that names the source, the stem,
the choices, the letter of the right one; what follows the two words of a pair (its parts of speech) is ignored, and so
are lines that begin with ``#``:

    190 FROM REAL SATs
    lull trust v:n
    balk fortitude v:n
    cajole compliance v:n
    b
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from gpt3_jax.errors import UserError
from gpt3_jax.evals.scoring import MeanLogLikelihood
from gpt3_jax.evals.tasks import rows
from gpt3_jax.evals.tasks.item import Item, Items
from gpt3_jax.evals.tasks.task import Open, Source, Task, Value

_LETTERS = "abcde"


def _item(number: int, stem: Sequence[str], choices: Sequence[Sequence[str]], right: int) -> Item:
    ends = tuple(f"{c} is to {d}" for c, d in choices)
    return Item(str(number), f"{stem[0]} is to {stem[1]} as", ends[right], ends, (right,))


def _from_row(number: int, where: str, row: dict[str, Any]) -> Item:
    stem = rows.texts(rows.required(row, "stem", where), "stem", where, (2, 2))
    choices = rows.required(row, "choices", where)
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(_LETTERS):
        raise UserError(f"{where}: 'choices' is not a list of 2 to {len(_LETTERS)} pairs")
    pairs = [rows.texts(pair, f"choices[{n}]", where, (2, 2)) for n, pair in enumerate(choices)]
    right = rows.required(row, "answer", where)
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(pairs):
        raise UserError(f"{where}: 'answer' is {right!r}; expected the right choice's number, 0 to {len(pairs) - 1}")
    return _item(number, stem, pairs, right)


def _from_block(number: int, path: str, first: int, lines: list[str]) -> Item:
    where = f"{path}, line {first}"
    if not 5 <= len(lines) <= 3 + len(_LETTERS):
        raise UserError(
            f"{where}: the question has {len(lines)} lines; expected source, stem, 2 to {len(_LETTERS)} choices, letter"
        )
    pairs = []
    for offset, line in enumerate(lines[1:-1], start=1):
        words = line.split()
        if len(words) < 2:
            what = "stem" if offset == 1 else "choice"
            raise UserError(f"{path}, line {first + offset}: the {what} {line!r} is not a pair of words")
        pairs.append((words[0], words[1]))
    letter = lines[-1].strip().lower()
    right = _LETTERS.find(letter) if len(letter) == 1 else -1
    if not 0 <= right < len(pairs) - 1:
        last = _LETTERS[len(pairs) - 2]
        raise UserError(
            f"{path}, line {first + len(lines) - 1}: the answer is {lines[-1]!r}; expected a letter, a to {last}"
        )
    return _item(number, pairs[0], pairs[1:], right)


def _load(path: str, _: Source, __: Mapping[str, Value]) -> Items:
    if path.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        found = [_from_row(number, *placed) for number, placed in enumerate(rows.rows(path))]
        return Items(found, found, path)
    found, block, first = [], list[str](), 0
    for number, line in enumerate([*rows.read_text(path).split("\n"), ""], start=1):
        if line.startswith("#"):
            continue
        if line.strip():
            first = first if block else number
            block.append(line)
        elif block:
            found.append(_from_block(len(found), path, first, block))
            block = []
    if not found:
        raise UserError(f"{path} holds no question; gpt3_jax.evals.tasks.analogies describes the formats")
    return Items(found, found, path)


def task(path: str) -> Task:
    """The task ``analogies:PATH``."""
    return Task(
        name=f"analogies:{os.path.basename(path)}",
        row="SAT Analogies",
        load=functools.partial(_load, path),
        scoring=MeanLogLikelihood(),
        metrics=("accuracy",),
        shots=20,
        delimiter="\n",
        splits=("itself", "itself"),
        open=(
            Open(
                "delimiter",
                "Whether one or two newlines stand between examples is not said for this task; the default is one.",
            ),
            Open("separator", "What stands between context and completion is not said; the default is one space."),
        ),
        about="SAT analogies from a file",
    )
