"""Completions of stories and texts: LAMBADA, HellaSwag, StoryCloze (section 3.1, Figures G.9, G.17, G.21)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gpt3_jax.errors import UserError
from gpt3_jax.evals.scoring import LastWord, MeanLogLikelihood
from gpt3_jax.evals.tasks import published, rows
from gpt3_jax.evals.tasks.item import Item
from gpt3_jax.evals.tasks.labels import label
from gpt3_jax.evals.tasks.open_settings import CHOICES, GENERATED, header
from gpt3_jax.evals.tasks.published import DataSet, Found, Options, Split
from gpt3_jax.evals.tasks.task import Open, Task
from gpt3_jax.evals.tasks.wording import upper_first


def _lambada(found: Found, options: Options) -> Iterator[Item]:
    """A text is all but its last word, which is to be predicted. Line breaks within it are kept."""
    plain = rows.plain_name(found.files[0]).endswith(".txt")
    texts = (
        rows.lines(found.files[0]) if plain else [(where, rows.text(row, "text", where)) for where, row in found.rows()]
    )
    for number, (where, text) in enumerate(texts):
        split = re.fullmatch(r"(.*\S)(\s+)(\S+)", text.strip(), re.DOTALL)
        if split is None:
            raise UserError(
                f"{where}: the text {text[:60]!r} has fewer than two words; expected a last word to be predicted"
            )
        before, space, word = split[1], split[2], split[3]
        # The separator of the task is one space; any other white space belongs to the text, and stays as it is. A space
        # at its end begins the word's token.
        kept = before + space.removesuffix(" ")
        between = None if space == " " else " " if space.endswith(" ") else ""
        blank = f"{before}{space}{options['blank']}. {options['arrow']}"
        yield Item(str(number), blank, word, right=(0,), zero_shot=kept, zero_shot_separator=between)


def _hellaswag(found: Found, options: Options) -> Iterator[Item | None]:
    for number, (where, row) in enumerate(found.rows()):
        activity = rows.text(row, "activity_label", where)
        first, second = rows.text(row, "ctx_a", where), rows.text(row, "ctx_b", where, empty=True)
        endings = rows.texts(rows.required(row, "endings", where), "endings", where, (4, 4), empty=True)
        right = label(row, "label", where, {**{n: n for n in range(4)}, **{str(n): n for n in range(4)}})
        if options["ctx_b"] == "upper":
            second = upper_first(second)
        context = f"{activity}: {first} {second}".rstrip()
        if options["tags"] == "removed":
            context, endings = _without_tags(context), tuple(map(_without_tags, endings))
        id = f"{row.get('ind', number)}"
        yield None if right is None else Item(id, context, endings[right], endings, (right,))


def _without_tags(text: str) -> str:
    """WikiHow's ``[title]`` as a full stop, its other tags away."""
    text = re.sub(r"\.? *\[title\]", ".", text)
    return re.sub(r" {2,}", " ", re.sub(r"\[[a-z]+\]", "", text)).strip()


_STORY = (
    [f"InputSentence{n}" for n in range(1, 5)] + ["RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2"],
    [f"input_sentence_{n}" for n in range(1, 5)] + ["sentence_quiz1", "sentence_quiz2"],
)
"""Columns of the authors' CSV and of the Hub: four sentences, and two endings."""


def _storycloze(found: Found, _: Options) -> Iterator[Item | None]:
    for number, (where, row) in enumerate(found.rows()):
        hub = "input_sentence_1" in row
        sentences = [rows.text(row, field, where).strip() for field in _STORY[hub]]
        right = label(row, "answer_right_ending" if hub else "AnswerRightEnding", where, {1: 0, 2: 1, "1": 0, "2": 1})
        id = str(row.get("story_id" if hub else "InputStoryid", number))
        endings = tuple(sentences[4:])
        yield None if right is None else Item(id, " ".join(sentences[:4]), endings[right], endings, (right,))


_LAMBADA_OPEN = (
    Open(
        "answer",
        "How the word is predicted is not said; the default likeliest asks whether each of its tokens is the "
        "likeliest, as GPT-2's evaluation did, generated takes the first word that beam search generates.",
        ("likeliest", "generated"),
    ),
    Open(
        "blank",
        "The length of the blank in Figure G.21 is a rule in print; the default is four underscores.",
    ),
    Open("arrow", "Figure G.21 has ->, section 3.1.2 an arrow; the default is the figure's.", ("->", "\u2192")),
    header(("few-shot", "each")),
    *GENERATED,
    *CHOICES,
)


def _lambada_task(name: str, row: str | None, data_set: DataSet, about: str) -> Task:
    return published.task(
        name,
        data_set,
        _lambada,
        row=row,
        scoring=LastWord(max_tokens=16),
        metrics=("accuracy", "perplexity of the completion"),
        shots=15,
        delimiter="\n\n",
        instruction="Fill in blank:",
        instructed="few-shot",
        options={"blank": "____", "arrow": "->"},
        open=_LAMBADA_OPEN,
        about=about,
    )


TASKS = (
    _lambada_task(
        "lambada",
        "LAMBADA",
        DataSet(
            test=Split("test", ("lambada_test.jsonl", "lambada_test_en.jsonl")),
            train=Split("validation", ("lambada_development.jsonl", "lambada_validation.jsonl", "lambada_dev.jsonl")),
            hub=(("lambada_openai", "default"), ("lambada_openai", "en"), ("openai_lambada", "default")),
        ),
        "the last word of a passage; OpenAI's detokenised variant",
    ),
    _lambada_task(
        "lambada_plain",
        None,
        DataSet(
            test=Split("test", ("lambada_test_plain_text.txt",)),
            train=Split("validation", ("lambada_development_plain_text.txt",)),
            hub=(("lambada", "plain_text"),),
        ),
        "the last word of a passage; the authors' tokenised lower-case text",
    ),
    published.task(
        "hellaswag",
        DataSet(
            test=Split("validation", ("hellaswag_val.jsonl",)),
            train=Split("train", ("hellaswag_train.jsonl",)),
            hub=(("hellaswag", "default"),),
        ),
        _hellaswag,
        row="HellaSwag",
        scoring=MeanLogLikelihood(),
        metrics=("accuracy",),
        shots=20,
        delimiter="\n",
        options={"ctx_b": "upper", "tags": "data"},
        open=(
            *CHOICES,
            Open(
                "ctx_b",
                "Figure G.9 begins the second part of the context with a capital, which the data does not; the default "
                "upper follows the figure.",
                ("upper", "data"),
            ),
            Open(
                "tags",
                "What was done with the tags [header], [title] and [step] of WikiHow items is not said; the default "
                "data leaves them, removed puts a full stop for [title] and nothing for others.",
                ("data", "removed"),
            ),
        ),
        about="the ending of an activity, of four",
    ),
    published.task(
        "storycloze",
        DataSet(
            test=Split("test", ("cloze_test_test__spring2016*.csv",)),
            train=Split("validation", ("cloze_test_val__spring2016*.csv",)),
            hub=(("story_cloze", "2016"),),
        ),
        _storycloze,
        row="StoryCloze",
        scoring=MeanLogLikelihood(),
        metrics=("accuracy",),
        shots=70,
        delimiter="\n",
        open=CHOICES,
        about="the fifth sentence of a story, of two; the 2016 set",
    ),
)
