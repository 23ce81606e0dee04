r"""Reading comprehension (section 3.6, Figures G.18, G.20, G.25 and G.28): CoQA, DROP, QuAC, SQuAD 2.0.

The authors' releases are read, which are one JSON document each, and the Hub's rows of the same. An example is one
question. In CoQA and QuAC the earlier questions of the dialogue stand before it with their answers, in SQuAD 2.0 the
earlier ones of the paragraph.

DROP is also read as rows of ``passage``, ``question`` and ``answers``, a list of answers that are lists of spans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from gpt3_jax.errors import UserError
from gpt3_jax.evals.scoring import Generated
from gpt3_jax.evals.tasks import published, rows
from gpt3_jax.evals.tasks.item import Item
from gpt3_jax.evals.tasks.open_settings import DELIMITER, GENERATED, SEPARATOR
from gpt3_jax.evals.tasks.published import DataSet, Found, Options, Split
from gpt3_jax.evals.tasks.task import Open, Task

_MOST = 10_000
"""Entries of a list, at most."""


def _turns(top: str, earlier: Sequence[tuple[str, str]], question: str) -> str:
    """A text, the questions before with their answers, and the question, with an empty line between any two."""
    before = [line for asked, answer in earlier for line in (f"Q: {asked}", f"A: {answer}")]
    return "\n\n".join([top, *before, f"Q: {question}", "A:"])


def _dialogues(make: Callable[[str, str, dict[str, Any], str, Options], Iterable[Item]]) -> published.Read:
    """Reads what stands under ``data`` in a release, or the Hub's rows. `make` gets the split, the place, the row, a
    number for dialogues without a name, and the options."""

    def read(found: Found, options: Options) -> Iterator[Item]:
        number = 0
        for where, row in found.rows():
            for at, each in rows.objects_in(row, "data", where) if "data" in row else [(where, row)]:
                yield from make(found.split, at, each, str(number), options)
                number += 1

    return read


def _texts(entries: Sequence[rows.Row], field: str, empty: bool = False) -> list[str]:
    return [rows.text(each, field, at, empty) for at, each in entries]


def _as_many(where: str, questions: Sequence[str], **others: Sequence[Any]) -> None:
    for name, each in others.items():
        if len(each) != len(questions):
            raise UserError(f"{where}: {name!r} has {len(each)} entries for {len(questions)} questions")


# ---- CoQA


def _coqa(split: str, where: str, row: dict[str, Any], number: str, _: Options) -> Iterator[Item]:
    """The answers of a release are lists of objects; the Hub's are an object of lists, without the other people's. What
    is evaluated must have those: CoQA's F1 is over the answers of several people."""
    story = rows.text(row, "story", where)
    if split == "test" and not row.get("additional_answers"):
        raise UserError(
            f"{where}: there are no 'additional_answers', the other people's, over which CoQA's F1 is taken; give the "
            "authors' coqa-dev-v1.0.json"
        )
    if isinstance(row.get("answers"), dict):
        questions = list(rows.texts(rows.required(row, "questions", where), "questions", where, (1, _MOST)))
        at, answers_of = rows.object_in(row, "answers", where)
        given = rows.required(answers_of, "input_text", at)
        answers = list(rows.texts(given, "input_text", at, (1, _MOST), empty=True))
        others: list[list[str]] = []
    else:
        questions = _in_order(rows.objects_in(row, "questions", where))
        answers = _in_order(rows.objects_in(row, "answers", where), empty=True)
        at, more = rows.object_in(row, "additional_answers", where) if row.get("additional_answers") else (where, {})
        others = [_in_order(rows.objects_in(more, name, at), empty=True) for name in more]
    _as_many(where, questions, answers=answers, **{f"additional_answers[{n}]": each for n, each in enumerate(others)})
    name = str(row.get("id") or number)
    earlier = list(zip(questions, answers, strict=True))
    for n, (question, answer) in enumerate(earlier):
        references = (answer, *(each[n] for each in others))
        yield Item(f"{name} {n + 1}", _turns(story, earlier[:n], question), answer, answers=references, group=story)


def _in_order(turns: Sequence[rows.Row], empty: bool = False) -> list[str]:
    for number, (at, turn) in enumerate(turns, start=1):
        if turn.get("turn_id", number) != number:
            raise UserError(f"{at}: 'turn_id' is {turn['turn_id']!r}; expected {number}, the turns in their order")
    return _texts(turns, "input_text", empty)


# ---- QuAC

_CANNOT = "CANNOTANSWER"


def _quac(_: str, where: str, row: dict[str, Any], number: str, options: Options) -> Iterator[Item]:
    if "paragraphs" not in row:
        yield from _quac_row(where, row, number, options)
        return
    title, section = rows.text(row, "title", where), rows.text(row, "section_title", where)
    for at, paragraph in rows.objects_in(row, "paragraphs", where):
        asked = rows.objects_in(paragraph, "qas", at)
        references = []
        first = []
        for place, each in asked:
            references.append(_texts(rows.objects_in(each, "answers", place), "text"))
            if not references[-1]:
                raise UserError(f"{place}: 'answers' is empty; expected what people answered, or {_CANNOT}")
            # The dialogue went on after this one; the others were asked later.
            own = rows.object_in(each, "orig_answer", place) if "orig_answer" in each else None
            first.append(rows.text(own[1], "text", own[0]) if own else references[-1][0])
        context = rows.text(paragraph, "context", at)
        ids = [str(each.get("id") or f"{paragraph.get('id') or number}_q#{n}") for n, (_, each) in enumerate(asked)]
        yield from _quac_items(
            ids, f"{title} - {section}", context, _texts(asked, "question"), first, references, options
        )


def _quac_row(where: str, row: dict[str, Any], number: str, options: Options) -> Iterator[Item]:
    """A dialogue as the Hub has it: lists by turn."""
    title, section = rows.text(row, "wikipedia_page_title", where), rows.text(row, "section_title", where)
    questions = rows.texts(rows.required(row, "questions", where), "questions", where, (1, _MOST))
    at, answers = rows.object_in(row, "answers", where)
    given = rows.list_in(answers, "texts", at)
    references = [list(rows.texts(each, f"texts[{n}]", at, (1, _MOST))) for n, each in enumerate(given)]
    at, original = rows.object_in(row, "orig_answers", where)
    first = rows.texts(rows.required(original, "texts", at), "texts", at, (1, _MOST))
    _as_many(where, questions, answers=references, orig_answers=first)
    name = str(row.get("dialogue_id") or number)
    ids = [f"{name}_q#{n}" for n in range(len(questions))]
    context = rows.text(row, "context", where)
    yield from _quac_items(ids, f"{title} - {section}", context, questions, first, references, options)


def _quac_items(
    ids: Sequence[str],
    title: str,
    context: str,
    questions: Sequence[str],
    first: Sequence[str],
    references: Sequence[Sequence[str]],
    options: Options,
) -> Iterator[Item]:
    none = str(options["unanswerable"])

    def shown(answer: str) -> str:
        return none if answer.strip() == _CANNOT else answer

    top = f"TITLE: {title}\nPARAGRAPH: {context.rstrip().removesuffix(_CANNOT).rstrip()}"
    earlier = [(question, shown(answer)) for question, answer in zip(questions, first, strict=True)]
    for n, (question, answer) in enumerate(earlier):
        accepted = tuple(map(shown, references[n]))
        context = _turns(top, earlier[:n], question)
        yield Item(ids[n], context, answer, answers=accepted, unanswerable=none, group=top)


# ---- SQuAD 2.0


def _squad(found: Found, options: Options) -> Iterator[Item]:
    """The questions of a paragraph are together in a release; on the Hub each is a row, and they may lie apart."""
    by_paragraph: dict[str, list[tuple[str, str]]] = {}
    for number, (title, context, at, question) in enumerate(_questions(found)):
        top = f"Title: {title.replace('_', ' ')}\n\nBackground: {context}"
        before = by_paragraph.setdefault(top, [])
        item = _squad_item(at, question, str(number), top, before, options)
        before.append((rows.text(question, "question", at), item.completion))
        yield item


def _questions(found: Found) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Title, context, place and row of each question."""
    for where, row in found.rows():
        if "data" not in row:
            yield rows.text(row, "title", where), rows.text(row, "context", where), where, row
            continue
        for at, article in rows.objects_in(row, "data", where):
            title = rows.text(article, "title", at)
            for place, paragraph in rows.objects_in(article, "paragraphs", at):
                context = rows.text(paragraph, "context", place)
                for one, question in rows.objects_in(paragraph, "qas", place):
                    yield title, context, one, question


def _squad_item(
    where: str, row: dict[str, Any], number: str, top: str, before: Sequence[tuple[str, str]], options: Options
) -> Item:
    none = str(options["unanswerable"])
    if isinstance(row.get("answers"), dict):  # the Hub's
        at, given = rows.object_in(row, "answers", where)
        answers = list(rows.texts(rows.required(given, "text", at), "text", at, (0, _MOST)))
        impossible = not answers
    else:
        answers = _texts(rows.objects_in(row, "answers", where), "text")
        impossible = rows.one_of(row, "is_impossible", where, {True: True, False: False})
        if impossible == bool(answers):
            there = f"there are {len(answers)} answers" if answers else "there is no answer"
            raise UserError(f"{where}: 'is_impossible' is {str(impossible).lower()}, and {there}")
    context = _turns(top, before, rows.text(row, "question", where))
    accepted = tuple(dict.fromkeys(answers)) or (none,)
    return Item(str(row.get("id") or number), context, accepted[0], answers=accepted, unanswerable=none, group=top)


# ---- DROP


def _drop(found: Found, options: Options) -> Iterator[Item | None]:
    joiner = str(options["joiner"])
    for number, (passage, where, row) in enumerate(_drop_rows(found)):
        answers = [spans for spans in _drop_answers(found, where, row) if any(span.strip() for span in spans)]
        asked = rows.text(row, "question", where)
        if not answers:
            yield None
            continue
        texts = tuple(joiner.join(spans) for spans in answers)
        yield Item(
            str(row.get("query_id") or number),
            f"Passage: {passage}\nQuestion: {asked}\nAnswer:",
            texts[0],
            answers=texts,
            spans=tuple(answers),
            joiner=joiner,
            group=passage,
        )


def _drop_rows(found: Found) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Passage, place and row of each question: of a release, by the passages' names; or of rows that hold both."""
    for where, row in found.rows():
        if "passage" in row:
            yield rows.text(row, "passage", where), where, row
            continue
        for name in row:
            at, section = rows.object_in(row, name, where)
            passage = rows.text(section, "passage", at)
            for place, pair in rows.objects_in(section, "qa_pairs", at):
                yield passage, place, pair


def _drop_answers(found: Found, where: str, row: dict[str, Any]) -> list[tuple[str, ...]]:
    """The answers of all people, each one or several spans; those of the person who asked come first."""
    if "answers" in row:
        given = rows.required(row, "answers", where)
        if not isinstance(given, list) or not given:
            raise UserError(f"{where}: 'answers' is {given!r:.60}; expected a list of answers, each a list of spans")
        return [rows.texts(each, f"answers[{n}]", where, (1, _MOST), empty=True) for n, each in enumerate(given)]
    if "answers_spans" in row:
        if found.split == "test":
            raise UserError(
                f"{where}: 'answers_spans' holds the spans of all people in one list, so that theirs cannot be told "
                "apart; give the authors' drop_dataset_dev.json, or a copy with 'validated_answers'"
            )
        at, spans = rows.object_in(row, "answers_spans", where)
        return [rows.texts(rows.required(spans, "spans", at), "spans", at, (1, _MOST), empty=True)]
    others = row.get("validated_answers") or []
    if isinstance(others, dict):  # the Hub's: lists by field
        at = f"{where}, validated_answers"
        lists = {name: rows.list_in(others, name, at) for name in others}
        count = max(map(len, lists.values()), default=0)
        others = [{name: each[n] for name, each in lists.items() if n < len(each)} for n in range(count)]
    given = [
        rows.object_in(row, "answer", where),
        *rows.objects_in({"validated_answers": others}, "validated_answers", where),
    ]
    return [_drop_spans(at, answer) for at, answer in given]


def _drop_spans(where: str, answer: dict[str, Any]) -> tuple[str, ...]:
    """A number, spans or a date, in this order, as DROP's script reads them. A date is written "2 May 1920"."""
    number = answer.get("number")
    if number not in ("", None):
        return (str(number),)
    if answer.get("spans"):
        return rows.texts(answer["spans"], "spans", where, (1, _MOST), empty=True)
    at, date = rows.object_in(answer, "date", where)
    parts = [rows.text(date, part, at, empty=True) for part in ("day", "month", "year") if part in date]
    return (" ".join(part.strip() for part in parts if part.strip()),)


# ---- the entries


def _unanswerable(why: str) -> Open:
    return Open(
        "unanswerable", f"What is to be answered where a question has no answer is not said; the default is {why}."
    )


_JOINER = Open(
    "joiner",
    "How several spans of DROP are written as one answer is not said, nor how a date is; the default joins spans by a "
    "comma, and a date is its day, month and year.",
)


def _task(name: str, row: str, data_set: DataSet, read: published.Read, **fields: Any) -> Task:
    open = (*GENERATED, SEPARATOR, DELIMITER, *fields.pop("open", ()))
    return published.task(
        name,
        data_set,
        read,
        row=row,
        scoring=Generated(max_tokens=64),
        delimiter="\n\n",
        open=open,
        **fields,
    )


TASKS = (
    _task(
        "coqa",
        "CoQA",
        DataSet(
            Split("validation", ("coqa-dev-v1.0.json",), hub=False),
            Split("train", ("coqa-train-v1.0.json",)),
            (("coqa", ""),),
        ),
        _dialogues(_coqa),
        metrics=("CoQA F1",),
        shots=5,
        about="CoQA, dialogues about a story",
    ),
    _task(
        "drop",
        "DROP",
        DataSet(
            Split("validation", ("drop_dataset_dev.json",)),
            Split("train", ("drop_dataset_train.json",)),
            (("drop", ""),),
        ),
        _drop,
        metrics=("DROP F1", "DROP exact match"),
        shots=20,
        options={"joiner": ", "},
        open=(_JOINER,),
        about="DROP, counting and arithmetic over a passage",
    ),
    _task(
        "quac",
        "Quac",
        DataSet(
            Split("validation", ("val_v0.2.json",)),
            Split("train", ("train_v0.2.json",)),
            (("quac", ""),),
        ),
        _dialogues(_quac),
        metrics=("QuAC F1", "QuAC HEQ-Q"),
        shots=5,
        options={"unanswerable": _CANNOT},
        open=(_unanswerable(f"the data's own {_CANNOT}"),),
        about="QuAC, dialogues about a section of Wikipedia",
    ),
    _task(
        "squadv2",
        "SQuADv2",
        DataSet(
            Split("validation", ("dev-v2.0.json",)),
            Split("train", ("train-v2.0.json",)),
            (("squad_v2", ""),),
        ),
        _squad,
        metrics=("SQuAD F1", "SQuAD exact match"),
        shots=16,
        options={"unanswerable": "unanswerable"},
        open=(_unanswerable("the word unanswerable, as in lm-evaluation-harness"),),
        about="SQuAD 2.0, questions about a paragraph, half of them without an answer",
    ),
)
