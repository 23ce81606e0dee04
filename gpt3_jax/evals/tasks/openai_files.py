r"""The format of OpenAI's synthetic data (github.com/openai/gpt-3, folder ``data``), read and written.

One JSON object a line with ``context`` and ``completion``. A context begins with the delimiter between examples and a
completion with one space, so that a prompt is the strings one after the other:
``{"context": "\n\nQ: What is 98 plus 45?\n\nA:", "completion": " 143"}``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from gpt3_jax.evals.tasks import rows
from gpt3_jax.evals.tasks.item import Item, Items
from gpt3_jax.evals.tasks.task import Task

Row = tuple[str, str]
"""Context and completion, as in a file."""


def read(path: str) -> list[Row]:
    """The rows of a file. Raises the errors of `rows.rows`; UserError for a field that is missing or not text."""
    return [(rows.text(row, "context", at), rows.text(row, "completion", at)) for at, row in rows.rows(path)]


def write(file: TextIO, all_rows: Iterable[Row]) -> None:
    """Writes rows as OpenAI's files have them."""
    for context, completion in all_rows:
        file.write(json.dumps({"context": context, "completion": completion}) + "\n")


def frame(all_rows: Sequence[Row]) -> tuple[str, str]:
    """What stands before every context and every completion: the newlines all contexts begin with (at most two), and
    a space or nothing."""
    newlines = next((n for n in ("\n\n", "\n") if all(context.startswith(n) for context, _ in all_rows)), "")
    space = " " if all(completion.startswith(" ") for _, completion in all_rows) else ""
    return newlines, space


def items(all_rows: Sequence[Row], source: str, newlines: str, space: str) -> Items:
    """Rows as examples, without the strings of `frame`. Demonstrations are drawn from the rows themselves."""
    found = [
        Item(str(number), context.removeprefix(newlines), completion.removeprefix(space))
        for number, (context, completion) in enumerate(all_rows)
    ]
    return Items(found, found, source)


def framed(task: Task, newlines: str, space: str) -> Task:
    """The task with the frame of a file, so that its prompts are the file's strings one after the other."""
    if newlines:
        return dataclasses.replace(task, delimiter=newlines, leading=True, separator=space)
    return dataclasses.replace(task, leading=False, separator=space)


EXAMPLES: Mapping[str, Row] = {
    "two_digit_addition": ("\n\nQ: What is 98 plus 45?\n\nA:", " 143"),
    "two_digit_subtraction": ("\n\nQ: What is 17 minus 14?\n\nA:", " 3"),
    "two_digit_multiplication": ("\n\nQ: What is 95 times 45?\n\nA:", " 4275"),
    "three_digit_addition": ("\n\nQ: What is 556 plus 497?\n\nA:", " 1053"),
    "single_digit_three_ops": ("\n\nQ: What is (9 + 8) * 2?\n\nA:", " 34"),
    "sum_of_digits": ("\n\nQ: What is the sum of the digits of the number 8606?\n\nA:", " 20"),
    "cycle_letters_in_word": ("\nasinoc =", " casino"),
    "mid_word_1_anagrams": ("\nskicts =", " sticks"),
    "mid_word_2_anagrams": ("\nvolwskagen =", " volkswagen"),
    "random_insertion_in_word": ("\nr e!c.i p r o.c a/l =", " reciprocal"),
    "reversed_words": ("\ntaefed =", " defeat"),
}
"""The first rows of OpenAI's files, which Appendix G prints too."""
