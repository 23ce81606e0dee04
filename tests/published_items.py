"""Invented examples in the formats in which data sets are published, and the prompts that they make.

Each case has two training examples and one that is evaluated; Winograd, which has one set, has three.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """A task's files, and what they are read as."""

    files: Mapping[str, str]
    """The authors' files by their paths."""
    prompts: tuple[str, ...]
    """Without demonstrations, one for each context."""
    asked: tuple[str, ...]
    """What is scored after each prompt, in order; for generated answers the right one."""
    shown: tuple[str, str]
    """Both training examples, as a prompt shows them."""
    delimiter: str
    top: str = ""
    """What stands above the examples where there are demonstrations."""
    few: str | None = None
    """The prompt's own part where there are demonstrations, if it is another."""
    hub: tuple[str, str] = ("", "")
    """Data set and configuration."""
    hub_rows: Mapping[str, Sequence[Row]] = dataclasses.field(default_factory=dict)
    """By split."""


def lines(*all_rows: Row) -> str:
    return "".join(json.dumps(row) + "\n" for row in all_rows)


def table(head: Sequence[str], *all_rows: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows([head, *all_rows])
    return out.getvalue()


def _glue(folder: str, config: str, test: Row, *train: Row, hub: Sequence[Row] | None = None, **fields: Any) -> Case:
    """A task of SuperGLUE; on the Hub its rows are `hub` (the test row first), or the same."""
    on_hub = list(hub or (test, *train))
    return Case(
        files={
            f"SuperGLUE/{folder}/val.jsonl": lines(test),
            f"SuperGLUE/{folder}/train.jsonl": lines(*train),
            f"SuperGLUE/{folder}/test.jsonl": lines({key: value for key, value in test.items() if key != "label"}),
        },
        hub=("super_glue", config),
        hub_rows={"validation": on_hub[: len(on_hub) // 3], "train": on_hub[len(on_hub) // 3 :]},
        **fields,
    )


def _boolq(passage: str, question: str, label: Any, idx: int) -> Row:
    return {"question": question, "passage": passage, "idx": idx, "label": label}


BOOLQ = _glue(
    "BoolQ",
    "boolq",
    _boolq("Tin whistle -- The whistle , a flute, has six holes.", "does a tin whistle have six holes", True, 7),
    _boolq("Harbour -- Ships lie here.", "do ships lie in a harbour", True, 1),
    _boolq("Moss -- Moss has no roots.", "does moss have roots?", False, 2),
    hub=(
        _boolq("Tin whistle -- The whistle , a flute, has six holes.", "does a tin whistle have six holes", 1, 7),
        _boolq("Harbour -- Ships lie here.", "do ships lie in a harbour", 1, 1),
        _boolq("Moss -- Moss has no roots.", "does moss have roots?", 0, 2),
    ),
    prompts=(
        "Tin whistle -- The whistle, a flute, has six holes.\nquestion: does a tin whistle have six holes?\nanswer:",
    ),
    asked=("yes",),
    shown=(
        "Harbour -- Ships lie here.\nquestion: do ships lie in a harbour?\nanswer: yes",
        "Moss -- Moss has no roots.\nquestion: does moss have roots?\nanswer: no",
    ),
    delimiter="\n\n",
)


def _cb(premise: str, hypothesis: str, label: Any, idx: int) -> Row:
    return {"premise": premise, "hypothesis": hypothesis, "label": label, "idx": idx}


CB = _glue(
    "CB",
    "cb",
    _cb("A: Do you think it snows? B: I doubt that it does.", "it snows", "contradiction", 4),
    _cb("She knew the door was open.", "the door was open", "entailment", 1),
    _cb("He asked if the cake was sweet.", "the cake was sweet", "neutral", 2),
    hub=(
        _cb("A: Do you think it snows? B: I doubt that it does.", "it snows", 1, 4),
        _cb("She knew the door was open.", "the door was open", 0, 1),
        _cb("He asked if the cake was sweet.", "the cake was sweet", 2, 2),
    ),
    prompts=(
        "A: Do you think it snows? B: I doubt that it does.\nquestion: it snows. true, false, or neither?\nanswer:",
    ),
    asked=("false",),
    shown=(
        "She knew the door was open.\nquestion: the door was open. true, false, or neither?\nanswer: true",
        "He asked if the cake was sweet.\nquestion: the cake was sweet. true, false, or neither?\nanswer: neither",
    ),
    delimiter="\n\n",
)


def _copa(premise: str, one: str, other: str, question: str, label: int, idx: int) -> Row:
    return {
        "premise": premise, "choice1": one, "choice2": other, "question": question, "label": label, "idx": idx,
    }  # fmt: skip


COPA = _glue(
    "COPA",
    "copa",
    _copa("The kettle whistled.", "The water boiled.", "The cup was blue.", "cause", 0, 9),
    _copa("The lamp fell over.", "It broke.", "It sang.", "effect", 0, 1),
    _copa("I took an umbrella.", "It was dry.", "It rained.", "cause", 1, 2),
    prompts=("The kettle whistled because",),
    asked=(" the water boiled.", " the cup was blue."),
    shown=("The lamp fell over so it broke.", "I took an umbrella because it rained."),
    delimiter="\n",
)

RTE = _glue(
    "RTE",
    "rte",
    _cb("The mill on the river burned in 1880.", "The mill burned.", "entailment", 3),
    _cb("Ann lives in Bern.", "Ann lives in Rome.", "not_entailment", 1),
    _cb("All the boats came home.", "A boat came home.", "entailment", 2),
    hub=(
        _cb("The mill on the river burned in 1880.", "The mill burned.", 0, 3),
        _cb("Ann lives in Bern.", "Ann lives in Rome.", 1, 1),
        _cb("All the boats came home.", "A boat came home.", 0, 2),
    ),
    prompts=("The mill on the river burned in 1880.\nquestion: The mill burned. True or False?\nanswer:",),
    asked=("True",),
    shown=(
        "Ann lives in Bern.\nquestion: Ann lives in Rome. True or False?\nanswer: False",
        "All the boats came home.\nquestion: A boat came home. True or False?\nanswer: True",
    ),
    delimiter="\n\n",
)


def _wic(word: str, one: str, other: str, label: Any, idx: int) -> Row:
    return {
        "word": word, "sentence1": one, "sentence2": other, "idx": idx, "label": label, "start1": 0, "start2": 0,
        "end1": 4, "end2": 4, "version": 1.1,
    }  # fmt: skip


WIC = _glue(
    "WiC",
    "wic",
    _wic("bank", "We sat on the bank of the river.", "The bank lent him money.", False, 5),
    _wic("ring", "A gold ring.", "She wore a ring.", True, 1),
    _wic("bat", "The bat slept in the cave.", "He swung the bat.", False, 2),
    hub=(
        _wic("bank", "We sat on the bank of the river.", "The bank lent him money.", 0, 5),
        _wic("ring", "A gold ring.", "She wore a ring.", 1, 1),
        _wic("bat", "The bat slept in the cave.", "He swung the bat.", 0, 2),
    ),
    prompts=(
        "We sat on the bank of the river.\nThe bank lent him money.\nquestion: Is the word 'bank' used in the same way "
        "in the two sentences above?\nanswer:",
    ),
    asked=("no",),
    shown=(
        "A gold ring.\nShe wore a ring.\nquestion: Is the word 'ring' used in the same way in the two sentences above?"
        "\nanswer: yes",
        "The bat slept in the cave.\nHe swung the bat.\nquestion: Is the word 'bat' used in the same way in the two "
        "sentences above?\nanswer: no",
    ),
    delimiter="\n\n",
)


def _wsc(text: str, noun: str, pronoun: str, place: int, label: bool, idx: int, flat: bool = False) -> Row:
    target = {"span1_index": 0, "span1_text": noun, "span2_index": place, "span2_text": pronoun}
    own = {"text": text, "idx": idx, "label": int(label) if flat else label}
    return own | (target if flat else {"target": target})


_WSC = (
    # The place is one too high, as in one item of the data; the same word stands before it too.
    ("Mr. Webb saw it was Otto 's cat , and he fed it .", "Otto 's cat", "it", 13, True, 4),
    ("Anna met Ruth because she had called.", "Anna", "she", 4, True, 1),
    ("The dog chased the ball until it burst.", "The ball", "it", 6, True, 2),
    ("The dog chased the ball until it burst.", "The dog", "it", 6, False, 3),
)
WSC = dataclasses.replace(
    _glue(
        "WSC",
        "wsc.fixed",
        _wsc(*_WSC[0]),
        *(_wsc(*each) for each in _WSC[1:]),
        prompts=(
            "Final Exam with Answer Key\nInstructions: Please carefully read the following passages. For each passage, "
            "you must identify which noun the pronoun marked in *bold* refers to.\n=====\nPassage: Mr. Webb saw it was "
            "Otto's cat, and he fed *it*.\nQuestion: In the passage above, what does the pronoun "
            '"*it*" refer to?\nAnswer:',
        ),
        asked=("otto's cat",),
        shown=(
            'Passage: Anna met Ruth because *she* had called.\nQuestion: In the passage above, what does the pronoun "*'
            'she*" refer to?\nAnswer: anna',
            "Passage: The dog chased the ball until *it* burst.\nQuestion: In the passage above, what does the pronoun "
            '"*it*" refer to?\nAnswer: the ball',
        ),
        delimiter="\n\n",
        top="Final Exam with Answer Key\nInstructions: Please carefully read the following passages. For each passage, "
        "you must identify which noun the pronoun marked in *bold* refers to.\n=====\n",
        few="Passage: Mr. Webb saw it was Otto's cat, and he fed *it*.\nQuestion: In the passage above, what does the "
        'pronoun "*it*" refer to?\nAnswer:',
    ),
    hub_rows={
        "validation": [_wsc(*_WSC[0], flat=True)],
        "train": [_wsc(*each, flat=True) for each in _WSC[1:]],
    },
)


def _multirc(idx: int, text: str, question: str, *answers: tuple[str, int]) -> Row:
    rows = [{"text": answer, "idx": 10 * idx + n, "label": label} for n, (answer, label) in enumerate(answers)]
    asked = {"question": question, "answers": rows, "idx": idx}
    return {"idx": idx, "version": 1.1, "passage": {"text": text, "questions": [asked]}}


def _multirc_hub(idx: int, text: str, question: str, *answers: tuple[str, int]) -> list[Row]:
    return [
        {
            "paragraph": text, "question": question, "answer": answer, "label": label,
            "idx": {"paragraph": idx, "question": idx, "answer": 10 * idx + n},
        }
        for n, (answer, label) in enumerate(answers)
    ]  # fmt: skip


_MULTIRC: tuple[tuple[Any, ...], ...] = (
    (5, "Ida rowed to the island . She found a hut .", "What did Ida find?", ("A hut", 1), ("Gold", 0), ("A cabin", 1)),
    (1, "Tom baked bread.", "Who baked?", ("Tom", 1), ("Eva", 0)),
    (2, "The train was late.", "What was late?", ("The bus", 0), ("The train", 1)),
)
MULTIRC = dataclasses.replace(
    _glue(
        "MultiRC",
        "multirc",
        *(_multirc(*each) for each in _MULTIRC),
        prompts=(
            "READING COMPREHENSION ANSWER KEY\nIda rowed to the island . She found a hut .\n\nWhat did Ida find?\n",
        ),
        asked=(
            "- [True] A hut", "- [False] A hut", "- [True] Gold", "- [False] Gold", "- [True] A cabin",
            "- [False] A cabin",
        ),
        shown=(
            "Tom baked bread.\n\nWho baked?\n- [True] Tom\n- [False] Eva",
            "The train was late.\n\nWhat was late?\n- [False] The bus\n- [True] The train",
        ),
        delimiter="\n\n",
        top="READING COMPREHENSION ANSWER KEY\n",
        few="Ida rowed to the island . She found a hut .\n\nWhat did Ida find?\n",
    ),
    hub_rows={
        "validation": _multirc_hub(*_MULTIRC[0]),
        "train": [row for each in _MULTIRC[1:] for row in _multirc_hub(*each)],
    },
)  # fmt: skip


def _record(idx: int, text: str, query: str, entities: Sequence[str], answers: Sequence[str]) -> Row:
    spans = [{"start": text.index(each), "end": text.index(each) + len(each) - 1} for each in entities]
    texts = [{"start": text.index(each), "end": text.index(each) + len(each) - 1, "text": each} for each in answers]
    return {
        "source": "invented", "passage": {"text": text, "entities": spans},
        "qas": [{"query": query, "answers": texts, "idx": idx}], "idx": idx,
    }  # fmt: skip


def _record_hub(idx: int, text: str, query: str, entities: Sequence[str], answers: Sequence[str]) -> Row:
    return {
        "passage": text, "query": query, "entities": list(dict.fromkeys(entities)), "answers": list(answers),
        "idx": {"passage": idx, "query": idx},
    }  # fmt: skip


_RECORD = (
    (
        6,
        "Mia Berg of Oslo won.\n@highlight\nBerg won in Rome\n@highlight\nOslo cheers",
        "The crown went to @placeholder",
        ["Mia Berg", "Oslo", "Rome", "Berg", "Oslo"],
        ["Mia Berg", "Berg"],
    ),
    (1, "Leo left.\n@highlight\nPaul stayed", "Now @placeholder is gone", ["Leo", "Paul"], ["Leo"]),
    (2, "Kyoto has temples.", "Go to @placeholder!", ["Kyoto"], ["Kyoto"]),
)
RECORD = dataclasses.replace(
    _glue(
        "ReCoRD",
        "record",
        *(_record(*each) for each in _RECORD),
        prompts=("Mia Berg of Oslo won.\n\n- Berg won in Rome\n- Oslo cheers\n",),
        asked=tuple(f"- The crown went to {name}" for name in ("Mia Berg", "Oslo", "Rome", "Berg")),
        shown=("Leo left.\n\n- Paul stayed\n- Now Leo is gone", "Kyoto has temples.\n\n- Go to Kyoto!"),
        delimiter="\n\n",
    ),
    hub_rows={"validation": [_record_hub(*_RECORD[0])], "train": [_record_hub(*each) for each in _RECORD[1:]]},
)

_LAMBADA = (
    '"Row," said Eva.\n\nThe boat did not move, so he took the other oar and began to row',
    "Nils had lost a boot. He looked everywhere for the boot",
    "It was late when she came home. The key was under the mat, where he had put the key",
)
LAMBADA = Case(
    files={
        "lambada_test.jsonl": lines({"text": _LAMBADA[0]}),
        "lambada_development.jsonl": lines(*({"text": text} for text in _LAMBADA[1:])),
    },
    prompts=('"Row," said Eva.\n\nThe boat did not move, so he took the other oar and began to',),
    asked=(" row",),
    shown=(
        "Nils had lost a boot. He looked everywhere for the ____. -> boot",
        "It was late when she came home. The key was under the mat, where he had put the ____. -> key",
    ),
    delimiter="\n\n",
    top="Fill in blank:\n\n",
    few='"Row," said Eva.\n\nThe boat did not move, so he took the other oar and began to ____. ->',
    hub=("lambada_openai", "default"),
    hub_rows={"test": [{"text": _LAMBADA[0]}], "validation": [{"text": text} for text in _LAMBADA[1:]]},
)
_PLAIN = ("`` no , '' she said , `` not the red hat , the blue hat", "he ran and ran and ran", "a cat is a cat")
LAMBADA_PLAIN = Case(
    files={
        "lambada_test_plain_text.txt": f"{_PLAIN[0]}\n",
        "lambada_development_plain_text.txt": "".join(f"{text}\n" for text in _PLAIN[1:]),
    },
    prompts=("`` no , '' she said , `` not the red hat , the blue",),
    asked=(" hat",),
    shown=("he ran and ran and ____. -> ran", "a cat is a ____. -> cat"),
    delimiter="\n\n",
    top="Fill in blank:\n\n",
    few="`` no , '' she said , `` not the red hat , the blue ____. ->",
    hub=("lambada", "plain_text"),
    hub_rows={
        "test": [{"text": _PLAIN[0], "domain": "x"}],
        "validation": [{"text": text, "domain": ""} for text in _PLAIN[1:]],
    },
)


def _hellaswag(ind: int, activity: str, a: str, b: str, label: Any, *endings: str) -> Row:
    return {
        "ind": ind, "activity_label": activity, "ctx_a": a, "ctx_b": b, "ctx": f"{a} {b}".strip(),
        "endings": list(endings), "label": label, "split": "val", "split_type": "indomain", "source_id": "x",
    }  # fmt: skip


_HELLASWAG: tuple[tuple[Any, ...], ...] = (
    (8, "Knitting", "A man holds wool.", "he", 2, "eats it.", "flies.", "knits a scarf.", "sells the sea."),
    (1, "Home and Garden", "[header] How to paint [title] Sand it. [step] Wait.", "", 0, "Paint.", "No.", "Go.", "Eh."),
    (2, "Rowing", "Two boats wait.", "the crews", 1, "sleep.", "row.", "bake.", "melt."),
)
HELLASWAG = Case(
    files={
        "hellaswag_val.jsonl": lines(_hellaswag(*_HELLASWAG[0])),
        "hellaswag_train.jsonl": lines(*(_hellaswag(*each) for each in _HELLASWAG[1:])),
    },
    prompts=("Knitting: A man holds wool. He",),
    asked=(" eats it.", " flies.", " knits a scarf.", " sells the sea."),
    shown=(
        "Home and Garden: [header] How to paint [title] Sand it. [step] Wait. Paint.",
        "Rowing: Two boats wait. The crews row.",
    ),
    delimiter="\n",
    hub=("hellaswag", "default"),
    hub_rows={
        "validation": [_hellaswag(*_HELLASWAG[0]) | {"label": "2"}],
        "train": [_hellaswag(*each) | {"label": str(each[4])} for each in _HELLASWAG[1:]],
    },
)

_STORY_HEAD = [
    "InputStoryid", *(f"InputSentence{n}" for n in range(1, 5)), "RandomFifthSentenceQuiz1",
    "RandomFifthSentenceQuiz2", "AnswerRightEnding",
]  # fmt: skip
_STORY_HUB = [
    "story_id", *(f"input_sentence_{n}" for n in range(1, 5)), "sentence_quiz1", "sentence_quiz2",
    "answer_right_ending",
]  # fmt: skip
_STORIES = (
    ("s0", "Jo had a kite.", 'She said, "up!"', "The wind came.", "It rose.", "Jo smiled.", "Jo ate it.", "1"),
    ("s1", "A.", "B.", "C.", "D.", "E.", "F.", "2"),
    ("s2", "G.", "H.", "I.", "J.", "K.", "L.", "1"),
)
STORYCLOZE = Case(
    files={
        "cloze_test_test__spring2016 - cloze_test_ALL_test.csv": table(_STORY_HEAD, _STORIES[0]),
        "cloze_test_val__spring2016 - cloze_test_ALL_val.csv": table(_STORY_HEAD, *_STORIES[1:]),
    },
    prompts=('Jo had a kite. She said, "up!" The wind came. It rose.',),
    asked=(" Jo smiled.", " Jo ate it."),
    shown=("A. B. C. D. F.", "G. H. I. J. K."),
    delimiter="\n",
    hub=("story_cloze", "2016"),
    hub_rows={
        "test": [dict(zip(_STORY_HUB, _STORIES[0], strict=True)) | {"answer_right_ending": 1}],
        "validation": [
            dict(zip(_STORY_HUB, each, strict=True)) | {"answer_right_ending": int(each[-1])} for each in _STORIES[1:]
        ],
    },
)

_PIQA = (
    ({"goal": "To dry a wet shoe,", "sol1": "fill it with paper.", "sol2": "fill it with water."}, 0),
    ({"goal": "Open a jar", "sol1": "Bite it.", "sol2": "Turn the lid."}, 1),
    ({"goal": "How to cool tea?", "sol1": "Wait.", "sol2": "Boil it."}, 0),
)
PIQA = Case(
    files={
        "piqa/valid.jsonl": lines(_PIQA[0][0]),
        "piqa/valid-labels.lst": "0\n",
        "piqa/train.jsonl": lines(*(row for row, _ in _PIQA[1:])),
        "piqa/train-labels.lst": "1\n0\n",
    },
    prompts=("To dry a wet shoe,",),
    asked=(" fill it with paper.", " fill it with water."),
    shown=("Open a jar Turn the lid.", "How to cool tea? Wait."),
    delimiter="\n",
    hub=("piqa", "plain_text"),
    hub_rows={
        "validation": [_PIQA[0][0] | {"label": 0}],
        "train": [row | {"label": label} for row, label in _PIQA[1:]],
    },
)


def _exam(id: str, stem: str, key: str, labels: str, *texts: str) -> Row:
    choices = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    return {"id": id, "question": {"stem": stem, "choices": choices}, "answerKey": key}


def _exam_hub(field: str, id: str, stem: str, key: str, labels: str, *texts: str) -> Row:
    return {"id": id, field: stem, "choices": {"text": list(texts), "label": list(labels)}, "answerKey": key}


_ARC: tuple[tuple[str, ...], ...] = (
    ("NYSEDREGENTS_1", "Which is a planet?", "3", "1234", "the Moon", "the Sun", "Mars", "a comet"),
    ("Mercury_1", "Ice melts when it is", "B", "ABC", "cold", "warm", "blue"),
    ("Mercury_2", "What do plants need?", "E", "ABCDE", "a", "b", "c", "d", "light"),
)


def _arc_case(part: str) -> Case:
    return Case(
        files={
            f"ARC-V1-Feb2018-2/{part}/{part}-Test.jsonl": lines(_exam(*_ARC[0])),
            f"ARC-V1-Feb2018-2/{part}/{part}-Train.jsonl": lines(*(_exam(*each) for each in _ARC[1:])),
        },
        prompts=("Question: Which is a planet?\nAnswer:",),
        asked=(" the Moon", " the Sun", " Mars", " a comet") * 2,
        shown=("Question: Ice melts when it is\nAnswer: warm", "Question: What do plants need?\nAnswer: light"),
        delimiter="\n\n",
        hub=("ai2_arc", part),
        hub_rows={
            "test": [_exam_hub("question", *_ARC[0])],
            "train": [_exam_hub("question", *each) for each in _ARC[1:]],
        },
    )


_BOOK: tuple[tuple[str, ...], ...] = (
    ("7-1", "A frog can", "A", "ABCD", "jump", "read", "drive", "knit"),
    ("7-2", "Rain makes roads", "D", "ABCD", "dry", "hot", "sing", "wet"),
    ("7-3", "Who sleeps in winter?", "B", "ABCD", "Nobody.", "The bear", "a", "b"),
)
OPENBOOKQA = Case(
    files={
        "OpenBookQA-V1-Sep2018/Data/Main/test.jsonl": lines(_exam(*_BOOK[0])),
        "OpenBookQA-V1-Sep2018/Data/Main/train.jsonl": lines(*(_exam(*each) for each in _BOOK[1:])),
        "OpenBookQA-V1-Sep2018/Data/Additional/test_complete.jsonl": "not read",
    },
    prompts=("A frog can",),
    asked=(" jump.", " read.", " drive.", " knit.") * 2,
    shown=("Rain makes roads wet.", "Who sleeps in winter? The bear."),
    delimiter="\n",
    hub=("openbookqa", "main"),
    hub_rows={
        "test": [_exam_hub("question_stem", *_BOOK[0])],
        "train": [_exam_hub("question_stem", *each) for each in _BOOK[1:]],
    },
)


def _race_file(id: str, article: str, *questions: tuple[str, str, tuple[str, ...]]) -> str:
    return json.dumps(
        {
            "answers": [answer for _, answer, _ in questions],
            "options": [options for _, _, options in questions],
            "questions": [question for question, _, _ in questions],
            "article": article,
            "id": id,
        }
    )


def _race_rows(id: str, article: str, *questions: tuple[str, str, tuple[str, ...]]) -> list[Row]:
    return [
        {"example_id": id, "article": article, "answer": answer, "question": question, "options": list(options)}
        for question, answer, options in questions
    ]


_RACE: tuple[Any, ...] = (
    ("T", "Lena has a shop.\nShe sells tea.", ("Lena sells _ .", "B", ("cups", "tea", "air", "fog"))),
    ("A", "Finn swims.", ("What does Finn do?", "D", ("a", "b", "c", "He swims."))),
    ("B", "It is noon.", ("It is _ .", "A", ("noon", "dawn", "night", "late"))),
)


def _race_case(level: str) -> Case:
    names = [f"{level}{each[0]}.txt" for each in _RACE]
    return Case(
        files={
            f"RACE/test/{level}/10.txt": _race_file(names[0], *_RACE[0][1:]),
            f"RACE/train/{level}/2.txt": _race_file(names[1], *_RACE[1][1:]),
            f"RACE/train/{level}/10.txt": _race_file(names[2], *_RACE[2][1:]),
            f"RACE/dev/{level}/1.txt": "not read",
        },
        prompts=("Article:\nLena has a shop.\nShe sells tea.\n\nQ: Lena sells _ .\n\nA:",),
        asked=(" cups", " tea", " air", " fog") * 2,
        shown=(
            "Article:\nFinn swims.\n\nQ: What does Finn do?\n\nA: He swims.",
            "Article:\nIt is noon.\n\nQ: It is _ .\n\nA: noon",
        ),
        delimiter="\n\n",
        hub=("race", level),
        hub_rows={
            "test": _race_rows(names[0], *_RACE[0][1:]),
            "train": [
                row for name, each in zip(names[1:], _RACE[1:], strict=True) for row in _race_rows(name, *each[1:])
            ],
        },
    )


def schema(before: str, pronoun: str, after: str, answers: Sequence[str], right: str) -> str:
    """A schema as the collection has them, with its white space."""
    texts = "".join(f"<answer>{answer} </answer>\n" for answer in answers)
    return (
        f"<schema>\n<text>\n<txt1>\n{before}</txt1>\n<pron> {pronoun} </pron>\n<txt2> {after} \n</txt2>\n</text>\n"
        f"<quote>\n<pron>{pronoun} </pron>\n<quote2>x</quote2>\n</quote>\n<answers>\n{texts}</answers>\n"
        f"<correctAnswer> {right}  </correctAnswer>\n<source> (invented) </source>\n</schema>\n\n"
    )


def collection(*schemas: str) -> str:
    return f'<?xml version="1.0" encoding="ISO-8859-1"?>\n\n<collection>\n\n{"".join(schemas)}</collection>\n'


_SCHEMAS = (
    ("Ole gave me his saw for my axe. He thinks", "it", "is sharper.", ["his saw", "my axe"], "B."),
    ("The baker paid the miller because", "his", "flour was\ngood.", ["The baker", "the miller"], "B"),
    ("Nina's bike leaned on the wall.", "It", "fell.", ["The bike", "the wall"], "A"),
)
WINOGRAD = Case(
    files={"WSCollection.xml": collection(*(schema(*each) for each in _SCHEMAS))},
    prompts=(
        "Ole gave me his saw for my axe. He thinks the saw",
        "Ole gave me his saw for my axe. He thinks the axe",
    ),
    asked=(" is sharper.", " is sharper."),
    shown=(
        "The baker paid the miller because the miller's flour was good.",
        "Nina's bike leaned on the wall. The bike fell.",
    ),
    delimiter="\n",
    hub=("winograd_wsc", "wsc273"),
    hub_rows={
        "test": [
            {
                "text": f"{before} {pronoun} {' '.join(after.split())}", "pronoun": pronoun,
                "pronoun_loc": len(before) + 1, "options": answers, "label": "AB".index(right[0]), "source": "x",
            }
            for before, pronoun, after, answers, right in _SCHEMAS
        ],
    },
)  # fmt: skip


def _winogrande(sentence: str, one: str, other: str, answer: str) -> Row:
    return {"qID": f"Q{sentence[0]}", "sentence": sentence, "option1": one, "option2": other, "answer": answer}


_WINOGRANDE = (
    _winogrande("Ada lent Bea a pen, so _ said thanks.", "Ada", "Bea", "2"),
    _winogrande("The tin held more than the cup, as the _ was big.", "tin", "cup", "1"),
    _winogrande("Kai beat Lou because _ 's knee hurt.", "Kai", "Lou", "2"),
)
WINOGRANDE = Case(
    files={
        "winogrande_1.1/dev.jsonl": lines(_WINOGRANDE[0]),
        "winogrande_1.1/dev-labels.lst": "2\n",
        "winogrande_1.1/train_xl.jsonl": lines(*_WINOGRANDE[1:]),
        "winogrande_1.1/train_xs.jsonl": lines(_WINOGRANDE[1]),
        "winogrande_1.1/test.jsonl": lines({key: value for key, value in _WINOGRANDE[0].items() if key != "answer"}),
    },
    prompts=("Ada lent Bea a pen, so Ada", "Ada lent Bea a pen, so Bea"),
    asked=(" said thanks.", " said thanks."),
    shown=("The tin held more than the cup, as the tin was big.", "Kai beat Lou because Lou 's knee hurt."),
    delimiter="\n",
    hub=("winogrande", "winogrande_xl"),
    hub_rows={"validation": [_WINOGRANDE[0]], "train": list(_WINOGRANDE[1:])},
)


def _anli(context: str, hypothesis: str, label: str, hub: bool = False) -> Row:
    own = {"uid": hypothesis, "hypothesis": hypothesis, "reason": "r"}
    return own | ({"premise": context, "label": "enc".index(label)} if hub else {"context": context, "label": label})


_ANLI = (
    ("Uma was born in Oslo.", "Uma is gone now", "n"),
    ("The band has four members.", "The band is a trio.", "c"),
    ("He won twice.", "He won.", "e"),
)


def _anli_case(number: int) -> Case:
    prefix = f"anli {number}: anli {number}: "
    return Case(
        files={
            f"anli_v1.0/R{number}/test.jsonl": lines(_anli(*_ANLI[0])),
            f"anli_v1.0/R{number}/train.jsonl": lines(*(_anli(*each) for each in _ANLI[1:])),
            f"anli_v0.1/R{number}/test.jsonl": "not read",
            f"anli_v0.1/R{number}/train.jsonl": "not read",
        },
        prompts=(f"{prefix}Uma was born in Oslo.\nQuestion: Uma is gone now True, False, or Neither?",),
        asked=(" True", " Neither", " False"),
        shown=(
            f"{prefix}The band has four members.\nQuestion: The band is a trio. True, False, or Neither? False",
            f"{prefix}He won twice.\nQuestion: He won. True, False, or Neither? True",
        ),
        delimiter="\n\n",
        hub=("anli", "plain_text"),
        hub_rows={
            f"test_r{number}": [_anli(*_ANLI[0], hub=True)],
            f"train_r{number}": [_anli(*each, hub=True) for each in _ANLI[1:]],
        },
    )


CASES: Mapping[str, Case] = {
    "lambada": LAMBADA,
    "lambada_plain": LAMBADA_PLAIN,
    "hellaswag": HELLASWAG,
    "storycloze": STORYCLOZE,
    "winograd": WINOGRAD,
    "winogrande": WINOGRANDE,
    "piqa": PIQA,
    "arc_easy": _arc_case("ARC-Easy"),
    "arc_challenge": _arc_case("ARC-Challenge"),
    "openbookqa": OPENBOOKQA,
    "race_high": _race_case("high"),
    "race_middle": _race_case("middle"),
    "boolq": BOOLQ,
    "cb": CB,
    "copa": COPA,
    "rte": RTE,
    "wic": WIC,
    "wsc": WSC,
    "multirc": MULTIRC,
    "record": RECORD,
    "anli_r1": _anli_case(1),
    "anli_r2": _anli_case(2),
    "anli_r3": _anli_case(3),
}


def write_release(folder: Path, case: Case) -> Path:
    """The authors' files, below a folder of any name."""
    for name, text in case.files.items():
        path = folder / "some" / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def write_saved(folder: Path, case: Case, name: str = "any name") -> Path:
    """As ``datasets.DatasetDict.save_to_disk`` of version 5 writes it, each row in a shard of its own."""
    import pyarrow as pa

    whole = folder / name
    whole.mkdir(parents=True)
    (whole / "dataset_dict.json").write_text(json.dumps({"splits": list(case.hub_rows)}))
    for split, all_rows in case.hub_rows.items():
        (whole / split).mkdir()
        names = [f"data-{n:05d}-of-{len(all_rows):05d}.arrow" for n in range(len(all_rows))]
        for shard, row in zip(names, all_rows, strict=True):
            part = pa.Table.from_pylist([row])
            with pa.OSFile(str(whole / split / shard), "wb") as file, pa.ipc.new_stream(file, part.schema) as stream:
                stream.write_table(part)
        data_set, config = case.hub
        info = {"builder_name": "parquet", "config_name": config, "dataset_name": data_set, "features": {}}
        (whole / split / "dataset_info.json").write_text(json.dumps(info))
        state = {"_data_files": [{"filename": each} for each in names], "_fingerprint": "0", "_split": split}
        (whole / split / "state.json").write_text(json.dumps(state))
    return folder


def write_snapshot(folder: Path, case: Case, owner: str = "owner") -> Path:
    """As a repository of the Hub keeps Parquet files, in the cache's folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data_set, config = case.hub
    there = (
        folder / f"datasets--{owner}--{data_set}" / "snapshots" / "0a1b" / ("data" if config == "default" else config)
    )
    there.mkdir(parents=True)
    for split, all_rows in case.hub_rows.items():
        pq.write_table(pa.Table.from_pylist(list(all_rows)), there / f"{split}-00000-of-00001.parquet")
    return folder
