r"""Questions without a text (section 3.2, Figures G.24, G.34 and G.35): TriviaQA, NaturalQuestions, WebQuestions.

Releases and the Hub's copies are read: TriviaQA's ``qa/wikipedia-dev.json``, ``NQ-open.dev.jsonl``, and WebQuestions as
``webquestions.examples.test.json``, whose answers are one text ``(list (description "Jamaican English") …)``, or in the
layout of brmson, ``main/test.json``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gpt3_jax.errors import UserError
from gpt3_jax.evals.scoring import Generated
from gpt3_jax.evals.tasks import published, rows
from gpt3_jax.evals.tasks.item import Item
from gpt3_jax.evals.tasks.open_settings import DELIMITER, GENERATED, SEPARATOR
from gpt3_jax.evals.tasks.published import DataSet, Found, Options, Split
from gpt3_jax.evals.tasks.task import Open, Task
from gpt3_jax.evals.tasks.wording import upper_first

_MOST = 10_000
"""Answers of one question, at most; TriviaQA has hundreds of aliases for some."""
_FORM = Open(
    "form",
    "Figures G.24 and G.35 show an upper-case first letter and a question mark that the data does not have; that every "
    "question is written so is inferred, and is the default.",
    ("written", "as it is"),
)


def _item(id: str, question: str, answers: tuple[str, ...]) -> Item:
    """The first answer is the one that a demonstration shows."""
    return Item(id, f"Q: {question}\n\nA:", answers[0], answers=tuple(dict.fromkeys(answers)))


def _written(question: str, options: Options) -> str:
    if options["form"] == "as it is":
        return question
    bare = question.strip()
    return upper_first(bare if bare.endswith("?") else f"{bare}?")


def _id(row: Mapping[str, Any], names: tuple[str, ...], number: int) -> str:
    return next((str(row[name]) for name in names if row.get(name)), str(number))


# ---- TriviaQA


def _trivia(found: Found, _: Options) -> Iterator[Item]:
    number = 0
    for where, row in found.rows():
        for at, each in rows.objects_in(row, "Data", where) if "Data" in row else [(where, row)]:
            yield _trivia_item(at, each, number)
            number += 1


def _trivia_item(where: str, row: dict[str, Any], number: int) -> Item:
    """Accepted are the answer itself, its aliases, also as the release has normalised them, and human answers."""
    lower = "question" in row  # the Hub's names
    question = rows.text(row, "question" if lower else "Question", where)
    at, answer = rows.object_in(row, "answer" if lower else "Answer", where)
    value, *lists = (
        ("value", "aliases", "normalized_aliases", "human_answers")
        if lower
        else ("Value", "Aliases", "NormalizedAliases", "HumanAnswers")
    )
    # The release normalises the alias "The" to nothing, which is no answer.
    known = [rows.texts(answer[name], name, at, (0, _MOST), empty=True) for name in lists if name in answer]
    aliases = tuple(alias for each in known for alias in each if alias.strip())
    return _item(_id(row, ("QuestionId", "question_id"), number), question, (rows.text(answer, value, at), *aliases))


# ---- NaturalQuestions and WebQuestions


def _rows(answers_of: Callable[[str, dict[str, Any]], tuple[str, tuple[str, ...]]]) -> published.Read:
    def read(found: Found, options: Options) -> Iterator[Item]:
        for number, (where, row) in enumerate(found.rows()):
            question, answers = answers_of(where, row)
            yield _item(_id(row, ("qId",), number), _written(question, options), answers)

    return read


def _natural(where: str, row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    answers = rows.texts(rows.required(row, "answer", where), "answer", where, (1, _MOST))
    return rows.text(row, "question", where), answers


def _web(where: str, row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    if "utterance" in row:
        return rows.text(row, "utterance", where), _descriptions(rows.text(row, "targetValue", where), where)
    question = rows.text(row, "qText" if "qText" in row else "question", where)
    return question, rows.texts(rows.required(row, "answers", where), "answers", where, (1, _MOST))


_LIST = re.compile(r"\(list\s+\(description\s+(.*)\)\s*\)", re.DOTALL)


def _descriptions(value: str, where: str) -> tuple[str, ...]:
    """The answers in WebQuestions' own notation, each a single word or in quotation marks. Those within an answer are
    not always escaped, so the answers are cut where one ends and the next begins."""
    whole = _LIST.fullmatch(value.strip())
    found = [_unquoted(each.strip()) for each in re.split(r"\)\s*\(description\s+", whole[1])] if whole else []
    if not found or not all(map(str.strip, found)):
        short = value if len(value) <= 60 else f"{value[:57]}..."
        raise UserError(f"{where}: 'targetValue' is {short!r}; expected (list (description \"…\") …)")
    return tuple(found)


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    return re.sub(r"\\(.)", r"\1", text)


def _task(name: str, row: str, metric: str, data_set: DataSet, read: published.Read, **fields: Any) -> Task:
    return published.task(
        name,
        data_set,
        read,
        row=row,
        scoring=Generated(max_tokens=32),
        metrics=(metric,),
        shots=64,
        delimiter="\n\n",
        **fields,
    )


_WRITTEN: Mapping[str, Any] = {
    "options": {"form": "written"},
    "open": (*GENERATED, SEPARATOR, DELIMITER, _FORM),
}
TASKS = (
    _task(
        "triviaqa",
        "TriviaQA",
        "TriviaQA exact match",
        DataSet(
            Split("validation", ("wikipedia-dev.json",)),
            Split("train", ("wikipedia-train.json",)),
            (("trivia_qa", "rc.wikipedia.nocontext"), ("trivia_qa", "rc.wikipedia")),
        ),
        _trivia,
        open=(*GENERATED, SEPARATOR, DELIMITER),
        about="TriviaQA, the questions of its Wikipedia part",
    ),
    _task(
        "naturalqs",
        "NQs",
        "SQuAD exact match",
        DataSet(
            Split("validation", ("NQ-open.dev.jsonl",)),
            Split("train", ("NQ-open.train.jsonl",)),
            (("nq_open", ""),),
        ),
        _rows(_natural),
        about="NaturalQuestions, the open questions",
        **_WRITTEN,
    ),
    _task(
        "webqs",
        "WebQs",
        "SQuAD exact match",
        DataSet(
            Split("test", ("webquestions.examples.test.json", "main/test.json")),
            Split("train", ("webquestions.examples.train.json", "main/trainmodel.json", "main/val.json")),
            (("web_questions", ""),),
        ),
        _rows(_web),
        about="WebQuestions",
        **_WRITTEN,
    ),
)
