"""SuperGLUE (section 3.7, Figures G.5, G.6, G.15 and G.29 to G.33): eight tasks, K = 32, evaluated on the dev splits.

Rows are read as the authors publish them (one folder a task: ``BoolQ/val.jsonl``) and as the Hub has them
(``super_glue``: labels are numbers, MultiRC and ReCoRD are flat).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from gpt3_jax.cluster.log import log
from gpt3_jax.errors import UserError
from gpt3_jax.evals.answer_rules import squad_normalised
from gpt3_jax.evals.scoring import EachAnswer, Labelled, MeanLogLikelihood, Referent, Rule
from gpt3_jax.evals.tasks import published, rows
from gpt3_jax.evals.tasks.item import Item
from gpt3_jax.evals.tasks.labels import label
from gpt3_jax.evals.tasks.open_settings import CHOICES, DELIMITER, GENERATED, LABELS, header
from gpt3_jax.evals.tasks.published import DataSet, Found, Options, Split
from gpt3_jax.evals.tasks.task import Open, Task
from gpt3_jax.evals.tasks.wording import lower_first, rejoined


def _row(make: Callable[[str, str, dict[str, Any], Options], Item | None]) -> published.Read:
    """Reads one example a row; its id is the row's `idx`, or its number."""

    def read(found: Found, options: Options) -> Iterator[Item | None]:
        for number, (where, row) in enumerate(found.rows()):
            yield make(str(row.get("idx", number)), where, row, options)

    return read


def _labelled(id: str, context: str, words: tuple[str, ...], right: int | None) -> Item | None:
    return None if right is None else Item(id, context, words[right], words, (right,))


_YES = ("yes", "no")
_BOOLEAN: Mapping[Any, int] = {True: 0, False: 1}
"""Of labels that are true or false; the Hub writes 1 and 0, which are the same keys."""


def _boolq(id: str, where: str, row: dict[str, Any], options: Options) -> Item | None:
    passage, question = (rows.text(row, field, where) for field in ("passage", "question"))
    if options["punctuation"] == "figure":
        passage = re.sub(r" +,", ",", passage)
    asked = question if question.endswith("?") else f"{question}?"
    return _labelled(id, f"{passage}\nquestion: {asked}\nanswer:", _YES, label(row, "label", where, _BOOLEAN))


_CB = ("true", "false", "neither")


def _cb(id: str, where: str, row: dict[str, Any], _: Options) -> Item | None:
    premise, hypothesis = (rows.text(row, field, where) for field in ("premise", "hypothesis"))
    known = {"entailment": 0, "contradiction": 1, "neutral": 2, 0: 0, 1: 1, 2: 2}
    context = f"{premise}\nquestion: {hypothesis}. true, false, or neither?\nanswer:"
    return _labelled(id, context, _CB, label(row, "label", where, known))


def _rte(id: str, where: str, row: dict[str, Any], _: Options) -> Item | None:
    premise, hypothesis = (rows.text(row, field, where) for field in ("premise", "hypothesis"))
    known = {"entailment": 0, "not_entailment": 1, 0: 0, 1: 1}
    context = f"{premise}\nquestion: {hypothesis} True or False?\nanswer:"
    return _labelled(id, context, ("True", "False"), label(row, "label", where, known))


def _wic(id: str, where: str, row: dict[str, Any], options: Options) -> Item | None:
    one, other, word = (rows.text(row, field, where) for field in ("sentence1", "sentence2", "word"))
    left, right = "''" if options["quotes"] == "straight" else "\u2018\u2019"
    asked = f"Is the word {left}{word}{right} used in the same way in the two sentences above?"
    context = f"{one}\n{other}\nquestion: {asked}\nanswer:"
    return _labelled(id, context, _YES, label(row, "label", where, _BOOLEAN))


def _copa(id: str, where: str, row: dict[str, Any], options: Options) -> Item | None:
    premise, *choices = (rows.text(row, field, where) for field in ("premise", "choice1", "choice2"))
    link = rows.one_of(row, "question", where, {"cause": "because", "effect": "so"})
    right = label(row, "label", where, {0: 0, 1: 1})
    if options["first_letter"] == "lower":
        choices = [lower_first(choice) for choice in choices]
    elif options["first_letter"] == "lower but I":
        choices = [choice if re.match(r"I\b|.[A-Z]", choice) else lower_first(choice) for choice in choices]
    if right is None:
        return None
    return Item(id, f"{premise.strip().removesuffix('.')} {link}", choices[right], tuple(choices), (right,))


# ---- WSC

_INSTRUCTIONS = (
    "Final Exam with Answer Key\nInstructions: Please carefully read the following passages. For each passage, you "
    "must identify which noun the pronoun marked in *bold* refers to.\n====="
)


def _wsc(found: Found, options: Options) -> Iterator[Item | None]:
    every = found.split == "test" or options["demonstrations"] == "all"
    skipped = total = 0
    for number, (where, row) in enumerate(found.rows()):
        total += 1
        item = _wsc_item(str(row.get("idx", number)), where, row, options)
        if item is not None and item.right == (1,) and not every:
            skipped += 1
            continue
        yield item
    if skipped:
        log.info(
            f"task wsc: {skipped} of {total} demonstrations of {found} name a noun that is not the referent and are "
            "left out; --set wsc.demonstrations=all shows them too"
        )


def _wsc_item(id: str, where: str, row: dict[str, Any], options: Options) -> Item | None:
    text = rows.text(row, "text", where)
    at, target = rows.object_in(row, "target", where) if "target" in row else (where, row)
    noun, pronoun = rows.text(target, "span1_text", at), rows.text(target, "span2_text", at)
    index = rows.number(target, "span2_index", at, 0, len(text))
    right = label(row, "label", where, _BOOLEAN)
    if right is None:
        return None
    marked = _marked(text, pronoun, index, at)
    if options["text"] == "detokenised":
        marked, noun = rejoined(marked), rejoined(noun)
    context = (
        f'Passage: {marked}\nQuestion: In the passage above, what does the pronoun "*{pronoun.strip()}*" refer to?'
        "\nAnswer:"
    )
    return Item(id, context, noun.lower(), ("the referent", "not the referent"), (right,), answers=(noun.lower(),))


def _marked(text: str, pronoun: str, index: int, where: str) -> str:
    """The text with ``*`` around the pronoun: word number `index`, or where the data counts wrongly, the nearest word
    that is the pronoun."""
    pronoun = pronoun.strip()
    own = re.compile(rf"(?<!\w){re.escape(pronoun)}(?!\w)")
    places = []
    for n, word in enumerate(re.finditer(r"\S+", text)):
        if found := own.search(text, word.start(), max(word.end(), word.start() + len(pronoun))):
            places.append((abs(n - index), found.start()))
    if not places:
        raise UserError(f"{where}: the text has no {pronoun!r}, which is its 'span2_text'")
    begin = min(places)[1]
    end = begin + len(pronoun)
    return f"{text[:begin]}*{text[begin:end]}*{text[end:]}"


# ---- MultiRC

_EACH = EachAnswer()


def _multirc(found: Found, _: Options) -> Iterator[Item | None]:
    """An item for each question, because K counts questions; its choices are all its answers."""
    for id, where, passage, question, answers in _questions(found):
        texts = [rows.text(answer, "text", at) for at, answer in answers]
        if not texts:
            raise UserError(f"{where}: the question has no answers")
        labels = [label(answer, "label", at, _BOOLEAN) for at, answer in answers]
        if None in labels:
            yield None
            continue
        right = tuple(n for n, each in enumerate(labels) if each == 0)
        lines = [(_EACH.true if n in right else _EACH.false) + text for n, text in enumerate(texts)]
        yield Item(id, f"{passage}\n\n{question}\n", "\n".join(lines), tuple(texts), right, group=passage)


_Question = tuple[str, str, str, str, list[rows.Row]]
"""Id, place, passage, question, and its answers: rows with text and label."""


def _questions(found: Found) -> Iterator[_Question]:
    flat: dict[tuple[int, ...], list[rows.Row]] = {}
    for where, row in found.rows():
        if "paragraph" in row:  # the Hub has a row for each answer
            at, idx = rows.object_in(row, "idx", where)
            numbers = (rows.number(idx, each, at, 0, 1 << 40) for each in ("paragraph", "question"))
            answer = {**row, "text": rows.text(row, "answer", where)}
            flat.setdefault(tuple(numbers), []).append((where, answer))
            continue
        at, passage = rows.object_in(row, "passage", where)
        text = rows.text(passage, "text", at)
        for number, (where_question, question) in enumerate(rows.objects_in(passage, "questions", at)):
            asked = rows.text(question, "question", where_question)
            id = f"{row.get('idx', where)}.{question.get('idx', number)}"
            yield id, where_question, text, asked, rows.objects_in(question, "answers", where_question)
    for key, answers in flat.items():
        where, first = answers[0]
        passage_text, asked = (rows.text(first, field, where) for field in ("paragraph", "question"))
        yield f"{key[0]}.{key[1]}", where, passage_text, asked, answers


# ---- ReCoRD


def _record(found: Found, options: Options) -> Iterator[Item | None]:
    for id, where, passage, query, entities, answers in _queries(found):
        if answers is None:
            yield None
            continue
        accepted = {squad_normalised(answer) for answer in answers}
        right = tuple(n for n, entity in enumerate(entities) if squad_normalised(entity) in accepted)
        if not right:
            raise UserError(f"{where}: none of the answers {', '.join(map(repr, answers))} is among its entities")
        if "@placeholder" not in query:
            raise UserError(f"{where}: the query has no @placeholder: {query[:60]!r}")
        choices = tuple(f"- {query.replace('@placeholder', entity)}" for entity in entities)
        own, accepted_texts = tuple(entities), tuple(answers)
        shown = choices[right[0]]
        yield Item(id, _bullets(passage), shown, choices, right, fillings=own, answers=accepted_texts, group=passage)


def _bullets(passage: str) -> str:
    """The passage, and below it the highlights with a ``-`` before each."""
    text, *highlights = re.split(r"\s*@highlight\s*", passage.strip())
    return f"{text}\n\n" + "".join(f"- {highlight}\n" for highlight in highlights)


_Query = tuple[str, str, str, str, list[str], list[str] | None]
"""Id, place, passage, query, the distinct entities in their order, the answers."""


def _queries(found: Found) -> Iterator[_Query]:
    for number, (where, row) in enumerate(found.rows()):
        if "entities" in row:  # the Hub has a row for each query
            at, idx = rows.object_in(row, "idx", where) if "idx" in row else (where, {"query": number})
            entities = rows.texts(row["entities"], "entities", where, (1, 10_000))
            answers = rows.texts(rows.required(row, "answers", where), "answers", where, (0, 10_000))
            passage, query = (rows.text(row, field, where) for field in ("passage", "query"))
            yield str(idx.get("query", number)), where, passage, query, _distinct(entities), _distinct(answers) or None
            continue
        at, inside = rows.object_in(row, "passage", where)
        passage = rows.text(inside, "text", at)
        spans = []
        for at_entity, entity in rows.objects_in(inside, "entities", at):
            first = rows.number(entity, "start", at_entity, 0, len(passage))
            last = rows.number(entity, "end", at_entity, first, len(passage) - 1)
            spans.append(passage[first : last + 1])  # the data's end is the last character
        for n, (at_query, query_row) in enumerate(rows.objects_in(row, "qas", where)):
            id = str(query_row.get("idx", f"{number}.{n}"))
            query = rows.text(query_row, "query", at_query)
            texts = None
            if "answers" in query_row:
                each = rows.objects_in(query_row, "answers", at_query)
                texts = _distinct(rows.text(answer, "text", at_answer) for at_answer, answer in each)
            yield id, at_query, passage, query, _distinct(spans), texts or None


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


# ---- entries


def _task(
    name: str,
    row: str,
    folder: str,
    read: published.Read,
    scoring: Rule,
    open: tuple[Open, ...],
    metrics: tuple[str, ...] = ("accuracy",),
    delimiter: str = "\n\n",
    **fields: Any,
) -> Task:
    configurations = ("wsc.fixed", "wsc") if name == "wsc" else (name,)
    data_set = DataSet(
        test=Split("validation", (f"{folder}/val.jsonl",)),
        train=Split("train", (f"{folder}/train.jsonl",)),
        hub=tuple(("super_glue", configuration) for configuration in configurations),
    )
    return published.task(
        name,
        data_set,
        read,
        row=row,
        scoring=scoring,
        metrics=metrics,
        shots=32,
        delimiter=delimiter,
        open=open,
        **fields,
    )


_SHORT = Labelled(max_tokens=8)
TASKS = (
    _task(
        "boolq",
        "BoolQ",
        "BoolQ",
        _row(_boolq),
        _SHORT,
        open=(
            *LABELS,
            Open(
                "punctuation",
                "Figure G.29 has no space before a comma where the data has one; the default figure removes such "
                "spaces, data leaves the passage as it is.",
                ("figure", "data"),
            ),
        ),
        options={"punctuation": "figure"},
        about="a question about a passage, yes or no",
    ),
    _task(
        "cb",
        "CB",
        "CB",
        _row(_cb),
        _SHORT,
        LABELS,
        ("accuracy", "macro F1"),
        about="a hypothesis that is true, false, or neither",
    ),
    _task(
        "copa",
        "Copa",
        "COPA",
        _row(_copa),
        MeanLogLikelihood(),
        open=(
            *CHOICES,
            Open(
                "first_letter",
                "Figure G.5 has the choice in lower case; whether a choice that begins with the word I has too is not "
                "said: the default lower changes all, lower but I leaves that word and acronyms, data leaves all.",
                ("lower", "lower but I", "data"),
            ),
        ),
        options={"first_letter": "lower"},
        delimiter="\n",
        about="cause or effect of a premise",
    ),
    _task(
        "multirc",
        "MultiRC",
        "MultiRC",
        _multirc,
        _EACH,
        open=(
            DELIMITER,
            header(("always", "each")),
            Open(
                "earlier_answers",
                "Whether an answer is judged after the question's earlier answers is not said; the default judges each "
                "alone, true puts the earlier ones before it with their gold labels, as in a demonstration.",
            ),
        ),
        metrics=("all answers right", "F1a"),
        draw="fixed",
        instruction="READING COMPREHENSION ANSWER KEY",
        instructed="always",
        below_instruction="\n",
        about="which answers to a question about a passage are right",
    ),
    _task(
        "record",
        "ReCoRD",
        "ReCoRD",
        _record,
        MeanLogLikelihood(),
        open=(DELIMITER,),
        metrics=("accuracy", "ReCoRD F1"),
        about="the entity that fills a blank, after a news article",
    ),
    _task("rte", "RTE", "RTE", _row(_rte), _SHORT, LABELS, about="a hypothesis that is true or false"),
    _task(
        "wic",
        "WiC",
        "WiC",
        _row(_wic),
        _SHORT,
        open=(
            *LABELS,
            Open(
                "quotes",
                "Whether the quotes around the word in Figure G.32 are straight or curly cannot be told from its "
                "print; the default is straight.",
                ("straight", "curly"),
            ),
        ),
        options={"quotes": "straight"},
        about="one word in two sentences, of one meaning or not",
    ),
    _task(
        "wsc",
        "WSC",
        "WSC",
        _wsc,
        Referent(max_tokens=16),
        open=(
            *GENERATED,
            *CHOICES,
            header(("always", "each")),
            Open(
                "referent",
                "How a generated noun becomes true or false is not said; the default overlap is T5's rule, exact asks "
                "for the same noun.",
                ("overlap", "exact"),
            ),
            Open(
                "demonstrations",
                "Which examples of the training split are shown is not said; the default true shows those whose noun "
                "is the referent, since the others do not say what it is; all shows them with their noun.",
                ("true", "all"),
            ),
            Open(
                "text",
                "Figure G.33 has no spaces before punctuation where the data has them; the default detokenised removes "
                "them by our rule, data leaves the passage as it is.",
                ("detokenised", "data"),
            ),
        ),
        options={"demonstrations": "true", "text": "detokenised"},
        draw="fixed",
        instruction=_INSTRUCTIONS,
        instructed="always",
        below_instruction="\n",
        about="what a pronoun refers to",
    ),
)
