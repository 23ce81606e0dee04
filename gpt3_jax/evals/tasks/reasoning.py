"""Questions with choices about the world and about passages: PIQA, ARC, OpenBookQA, RACE (sections 3.5 and 3.6, Figures
G.1, G.3, G.4, G.8, G.11 and G.16)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from gpt3_jax.errors import UserError
from gpt3_jax.evals.scoring import AnswerNormalised, MeanLogLikelihood
from gpt3_jax.evals.tasks import published, rows
from gpt3_jax.evals.tasks.item import Item
from gpt3_jax.evals.tasks.labels import label
from gpt3_jax.evals.tasks.open_settings import ANSWER_CONTEXT, CHOICES, PER_TOKEN
from gpt3_jax.evals.tasks.published import DataSet, Found, Options, Split
from gpt3_jax.evals.tasks.task import Open, Task


def _piqa(found: Found, _: Options) -> Iterator[Item | None]:
    """The label stands in the row (Hub), or on the same line of a second file (``valid-labels.lst``)."""
    all_rows = list(found.rows())
    if not any("label" in row for _, row in all_rows):
        path = found.files[0]
        stem = re.sub(r"\.jsonl$", "", rows.plain_name(os.path.basename(path)))
        beside = published.companion(path, f"{stem}-labels.lst", "labels")
        labels = rows.lines(beside)
        if len(labels) != len(all_rows):
            raise UserError(f"{path} has {len(all_rows)} rows, and {beside} {len(labels)}; fetch both again")
        all_rows = [
            (where, {**row, "label": rows.one_of({"label": line.strip()}, "label", at, {"0": 0, "1": 1})})
            for (where, row), (at, line) in zip(all_rows, labels, strict=True)
        ]
    for number, (where, row) in enumerate(all_rows):
        goal, *solutions = (rows.text(row, field, where).strip() for field in ("goal", "sol1", "sol2"))
        right = label(row, "label", where, {0: 0, 1: 1, "0": 0, "1": 1})
        yield None if right is None else Item(str(number), goal, solutions[right], tuple(solutions), (right,))


def _stem_and_options(where: str, row: Mapping[str, Any], hub_stem: str) -> tuple[str, tuple[str, ...], int | None]:
    """A row of ARC or OpenBookQA: its question, its options, and which is right. The authors nest the question, and
    have an object for each option; the Hub has two lists. Labels are letters, or numbers from 1."""
    if isinstance(row.get("question"), Mapping):
        at, question = rows.object_in(row, "question", where)
        stem = rows.text(question, "stem", at)
        options = rows.objects_in(question, "choices", at)
        texts = [rows.text(option, "text", place) for place, option in options]
        names = [rows.text(option, "label", place) for place, option in options]
    else:
        stem = rows.text(row, hub_stem, where)
        at, lists = rows.object_in(row, "choices", where)
        texts, names = (
            list(rows.texts(rows.required(lists, field, at), field, at, (2, 9))) for field in ("text", "label")
        )
    if len(texts) < 2 or len(set(names)) != len(texts):
        raise UserError(
            f"{where}: the labels of its {len(texts)} choices are {', '.join(names)}; expected one for each"
        )
    right = label(row, "answerKey", where, {name: n for n, name in enumerate(names)})
    return stem, tuple(texts), right


def _arc(found: Found, _: Options) -> Iterator[Item | None]:
    for number, (where, row) in enumerate(found.rows()):
        stem, options, right = _stem_and_options(where, row, "question")
        context = f"Question: {stem}\nAnswer:"
        id = str(row.get("id", number))
        yield None if right is None else Item(id, context, options[right], options, (right,))


def _openbookqa(found: Found, settings: Options) -> Iterator[Item | None]:
    for number, (where, row) in enumerate(found.rows()):
        stem, options, right = _stem_and_options(where, row, "question_stem")
        if settings["period"]:
            options = tuple(option if option.endswith((".", "?", "!")) else f"{option}." for option in options)
        id = str(row.get("id", number))
        yield None if right is None else Item(id, stem, options[right], options, (right,))


# ---- RACE


def _race(found: Found, options: Options) -> Iterator[Item | None]:
    """An item for each question; the article's others come before it with their answers."""
    for id, article, questions in _articles(found):
        for n, (question, choices, right) in enumerate(questions):
            if right is None:
                yield None
                continue
            shown = {
                "all": [each for m, each in enumerate(questions) if m != n],
                "earlier": questions[:n],
                "none": [],
            }[str(options["other_questions"])]
            before = "".join(f"Q: {q}\n\nA: {c[r]}\n\n" for q, c, r in shown if r is not None)
            context = f"Article:\n{article}\n\n{before}Q: {question}\n\nA:"
            yield Item(f"{id}.{n}", context, choices[right], choices, (right,), group=article)


_Asked = tuple[str, tuple[str, ...], int | None]
"""Question, options, which is right."""


def _articles(found: Found) -> Iterator[tuple[str, str, list[_Asked]]]:
    """Articles with their questions: a JSON file each in the authors' release, a row for each question on the Hub."""
    if not found.hub:
        for path in found.files:
            for where, row in rows.objects(path) if path.lower().endswith(".jsonl") else [(path, _document(path))]:
                texts = rows.texts(rows.required(row, "questions", where), "questions", where, (1, 100))
                lists, letters = rows.list_in(row, "options", where), row.get("answers")
                for field, value in (("options", lists), ("answers", letters)):
                    if value is not None and (not isinstance(value, list) or len(value) != len(texts)):
                        raise UserError(f"{where}: {field!r} is not a list of {len(texts)}, one for each question")
                asked = [
                    _asked(f"{where}, question {n}", text, lists[n], None if letters is None else letters[n])
                    for n, text in enumerate(texts)
                ]
                id = os.path.splitext(os.path.basename(path))[0]
                yield str(row.get("id", id)), rows.text(row, "article", where), asked
        return
    by_article: dict[str, tuple[str, list[_Asked]]] = {}  # whose rows may lie apart
    for where, row in found.rows():
        article = rows.text(row, "article", where)
        _, questions = by_article.setdefault(article, (str(row.get("example_id", where)), []))
        questions.append(_asked(where, rows.text(row, "question", where), row.get("options"), row.get("answer")))
    for article, (id, questions) in by_article.items():
        yield id, article, questions


def _document(path: str) -> dict[str, Any]:
    found = rows.document(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} is no JSON object; expected an article with its questions")
    return found


def _asked(where: str, question: str, options: Any, answer: Any) -> _Asked:
    choices = rows.texts(options, "options", where, (2, 9), empty=True)
    letters = {letter: n for n, letter in enumerate("ABCDEFGHI"[: len(choices)])}
    return question, choices, label({"answer": answer}, "answer", where, letters)


# ---- entries


def _normalised(
    name: str, row: str, data_set: DataSet, read: published.Read, shots: int, answer_context: str, **fields: Any
) -> Task:
    return published.task(
        name,
        data_set,
        read,
        row=row,
        scoring=AnswerNormalised(answer_context),
        metrics=("accuracy",),
        shots=shots,
        open=(*CHOICES, *fields.pop("open", ()), ANSWER_CONTEXT, PER_TOKEN),
        **fields,
    )


def _arc_task(name: str, row: str, part: str) -> Task:
    data_set = DataSet(
        test=Split("test", (f"{part}-Test.jsonl",)),
        train=Split("train", (f"{part}-Train.jsonl",)),
        hub=(("ai2_arc", part),),
    )
    about = f"questions of science exams, the {'easy' if part == 'ARC-Easy' else 'hard'} ones"
    return _normalised(name, row, data_set, _arc, 50, "Answer: ", delimiter="\n\n", about=about)


def _race_task(name: str, row: str, level: str) -> Task:
    data_set = DataSet(
        test=Split("test", (f"RACE/test/{level}/*.txt",), many=True),
        train=Split("train", (f"RACE/train/{level}/*.txt",), many=True),
        hub=(("race", level),),
    )
    return _normalised(
        name,
        row,
        data_set,
        _race,
        10,
        "A: ",
        delimiter="\n\n",
        options={"other_questions": "all"},
        open=(
            Open(
                "other_questions",
                "Figures G.1 and G.3 show the last question of an article after its others; whether each question is "
                "asked so is not said: the default all shows all others, earlier those before it, none none.",
                ("all", "earlier", "none"),
            ),
        ),
        about=f"questions about an article, {level} school",
    )


ARC = (
    _arc_task("arc_easy", "ARC (Easy)", "ARC-Easy"),
    _arc_task("arc_challenge", "ARC (Challenge)", "ARC-Challenge"),
)
RACE = (_race_task("race_high", "RACE-h", "high"), _race_task("race_middle", "RACE-m", "middle"))
TASKS = (
    published.task(
        "piqa",
        DataSet(
            test=Split("validation", ("piqa*/**/valid.jsonl", "physicaliqa*/**/dev.jsonl")),
            train=Split("train", ("piqa*/**/train.jsonl", "physicaliqa*/**/train.jsonl")),
            hub=(("piqa", "plain_text"), ("piqa", "default")),
        ),
        _piqa,
        row="PIQA",
        scoring=MeanLogLikelihood(),
        metrics=("accuracy",),
        shots=50,
        delimiter="\n",
        open=CHOICES,
        about="how a goal is reached, of two ways",
    ),
    *ARC,
    _normalised(
        "openbookqa",
        "OpenBookQA",
        DataSet(
            test=Split("test", ("OpenBookQA*/Data/Main/test.jsonl",)),
            train=Split("train", ("OpenBookQA*/Data/Main/train.jsonl",)),
            hub=(("openbookqa", "main"),),
        ),
        _openbookqa,
        100,
        "Answer: ",
        delimiter="\n",
        options={"period": True},
        open=(
            Open(
                "period",
                "Figure G.8 ends each choice with a period, which the data does not; the default adds it where a "
                "choice does not end in a period, question mark or exclamation mark.",
            ),
        ),
        about="questions of elementary science",
    ),
    *RACE,
)
