"""Adversarial NLI, rounds 1 to 3 (section 3.8, Figures G.2, G.7, G.10): K = 50, evaluated on the test splits."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from gpt3_jax.evals.scoring import MeanLogLikelihood
from gpt3_jax.evals.tasks import published, rows
from gpt3_jax.evals.tasks.item import Item
from gpt3_jax.evals.tasks.labels import label
from gpt3_jax.evals.tasks.open_settings import CHOICES
from gpt3_jax.evals.tasks.published import DataSet, Found, Options, Split
from gpt3_jax.evals.tasks.task import Task

_WORDS = ("True", "Neither", "False")
_LABELS: Mapping[Any, int] = {"e": 0, "n": 1, "c": 2, 0: 0, 1: 1, 2: 2}
"""Entailment, neutral, contradiction, as the authors and as the Hub write them."""


def _read(prefix: str, found: Found, _: Options) -> Iterator[Item | None]:
    for number, (where, row) in enumerate(found.rows()):
        premise = rows.text(row, "premise" if "premise" in row else "context", where)
        hypothesis = rows.text(row, "hypothesis", where)
        right = label(row, "label", where, _LABELS)
        context = f"{prefix}{premise}\nQuestion: {hypothesis} True, False, or Neither?"
        id = str(row.get("uid", number))
        yield None if right is None else Item(id, context, _WORDS[right], _WORDS, (right,))


def _task(number: int) -> Task:
    prefix = f"anli {number}: "
    data_set = DataSet(
        test=Split(f"test_r{number}", (f"anli_v*/R{number}/test.jsonl",)),
        train=Split(f"train_r{number}", (f"anli_v*/R{number}/train.jsonl",)),
        hub=(("anli", "plain_text"),),
    )
    return published.task(
        f"anli_r{number}",
        data_set,
        functools.partial(_read, prefix + prefix),  # the figures have it twice
        row=f"ANLI R{number}",
        scoring=MeanLogLikelihood(),
        metrics=("accuracy",),
        shots=50,
        delimiter="\n\n",
        open=CHOICES,
        about=f"a hypothesis that is true, false or neither, round {number}",
    )


TASKS = tuple(_task(number) for number in (1, 2, 3))
