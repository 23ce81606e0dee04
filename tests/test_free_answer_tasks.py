"""Tasks whose answers are generated, from files as they are published: prompts byte for byte, layouts, broken files."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from published_items import wrong_kinds

from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.errors import UserError
from gpt3_jax.evals import protocol, table_h1
from gpt3_jax.evals.metrics import METRICS, Scored
from gpt3_jax.evals.scoring import Judgement
from gpt3_jax.evals.tasks import perplexity, rows
from gpt3_jax.evals.tasks.item import Item, Items
from gpt3_jax.evals.tasks.select import GROUPS, select
from gpt3_jax.evals.tasks.task import Source

Files = Mapping[str, Any]
"""Paths and what they hold: a text, JSON, or a list of rows for a name that ends in .jsonl."""


def write(root: Path, files: Files) -> str:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jsonl"):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1), encoding="utf-8")
    return str(root)


def load(name: str, data: str, *settings: str) -> Items:
    (task,) = select([name], settings, data)
    return task.load(Source(data=data), task.options)


def prompts(name: str, data: str, *settings: str, item: int = 0, n_ctx: int = 100_000) -> list[str]:
    """The prompts of an item with K = 0, 1, 2, and after each what is right."""
    (task,) = select([name], settings, data)
    items = task.load(Source(data=data), task.options)
    preparer = protocol.Preparer(task, items, ByteTokenizer(), n_ctx)
    found: list[str] = []
    for shots in (0, 1, 2):
        made = preparer.prepare(items.test[item], shots, 0)
        assert isinstance(made, protocol.Prepared) and made.shots == shots
        found.append(*made.prompts)
    return found


# ---- questions without a text


def trivia(id: str, question: str, value: str, *aliases: str) -> dict[str, Any]:
    answer = {"Value": value, "Aliases": [value, *aliases], "NormalizedAliases": [alias.lower() for alias in aliases]}
    return {"QuestionId": id, "Question": question, "Answer": {**answer, "Type": "WikipediaEntity"}}


TRIVIA: Files = {
    "qa/wikipedia-dev.json": {"Data": [trivia("tc_1", "Who sang Mud Pie?", "The Ducks", "Ducks, The")], "Version": 1},
    "qa/wikipedia-train.json": {"Data": [trivia("a", "Whose is it? ", "Ours"), trivia("b", "which one", "This")]},
}
NATURAL: Files = {
    "NQ-open.dev.jsonl": [{"question": "who sang mud pie", "answer": ["The Ducks", "ducks"]}],
    "NQ-open.train.jsonl": [
        {"question": "éclairs are made where", "answer": ["here", "there"]},
        {"question": "Which one?", "answer": ["This"]},
    ],
}


def web(*answers: str) -> str:
    return f"(list {' '.join(f'(description {answer})' for answer in answers)})"


WEB: Files = {
    "webquestions.examples.test.json": [
        {"url": "", "targetValue": web('"Red Duck"', "Mud", '"The \\"Pie\\""'), "utterance": "who sang mud pie?"}
    ],
    "webquestions.examples.train.json": [
        {"url": "", "targetValue": web('"""Here"""'), "utterance": "where is it"},
        {"url": "", "targetValue": web('"This (one)"', "That"), "utterance": "which one?"},
    ],
}


def test_prompts_of_trivia_qa(tmp_path: Path) -> None:
    assert prompts("triviaqa", write(tmp_path, TRIVIA)) == [
        "Q: Who sang Mud Pie?\n\nA:",
        "Q: Whose is it? \n\nA: Ours\n\nQ: Who sang Mud Pie?\n\nA:",
        "Q: Whose is it? \n\nA: Ours\n\nQ: which one\n\nA: This\n\nQ: Who sang Mud Pie?\n\nA:",
    ]
    (item,) = load("triviaqa", str(tmp_path)).test
    assert item.id == "tc_1" and item.completion == "The Ducks"
    assert item.answers == ("The Ducks", "Ducks, The", "ducks, the"), "each alias once"


def test_prompts_of_natural_questions_are_written_as_questions(tmp_path: Path) -> None:
    assert prompts("naturalqs", write(tmp_path, NATURAL)) == [
        "Q: Who sang mud pie?\n\nA:",
        "Q: Which one?\n\nA: This\n\nQ: Who sang mud pie?\n\nA:",
        "Q: Which one?\n\nA: This\n\nQ: Éclairs are made where?\n\nA: here\n\nQ: Who sang mud pie?\n\nA:",
    ]
    assert prompts("naturalqs", str(tmp_path), "form=as it is")[0] == "Q: who sang mud pie\n\nA:"
    assert load("naturalqs", str(tmp_path)).test[0].answers == ("The Ducks", "ducks")


def test_prompts_of_web_questions_in_three_layouts(tmp_path: Path) -> None:
    released = write(tmp_path / "released", WEB)
    assert prompts("webqs", released) == [
        "Q: Who sang mud pie?\n\nA:",
        'Q: Where is it?\n\nA: ""Here""\n\nQ: Who sang mud pie?\n\nA:',
        'Q: Where is it?\n\nA: ""Here""\n\nQ: Which one?\n\nA: This (one)\n\nQ: Who sang mud pie?\n\nA:',
    ]
    assert load("webqs", released).test[0].answers == ("Red Duck", "Mud", 'The "Pie"')
    row = {"qId": "wqr1", "qText": "who sang mud pie?", "answers": ["Red Duck", "Mud", 'The "Pie"']}
    lines = write(tmp_path / "brmson", {"main/test.json": [row]})
    rows = write(tmp_path / "web_questions", {"test.jsonl": [{"question": row["qText"], "answers": row["answers"]}]})
    of_brmson = load("webqs", lines)
    assert of_brmson.train is None and of_brmson.test[0].id == "wqr1"
    for found in (of_brmson, load("webqs", rows, f"test_file={rows}/test.jsonl")):
        assert found.test[0].answers == load("webqs", released).test[0].answers


# ---- reading


def coqa(id: str, story: str, *turns: Sequence[str]) -> dict[str, Any]:
    """A dialogue: each turn is a question and the answers of as many people."""

    def texts(texts: Sequence[str]) -> list[dict[str, Any]]:
        return [{"input_text": text, "turn_id": n} for n, text in enumerate(texts, start=1)]

    people = list(zip(*turns, strict=True))
    found = {"id": id, "source": "made up", "story": story, "questions": texts(people[0]), "answers": texts(people[1])}
    return found | {"additional_answers": {str(n): texts(each) for n, each in enumerate(people[2:])}}


COQA: Files = {
    "coqa-dev-v1.0.json": {
        "version": "1.0",
        "data": [
            coqa(
                "d",
                'A duck sat.\n\n"Go!" ',
                ("Who sat?", "a duck", "the duck", "a duck"),
                ("Where?", "unknown", "", "here"),
            )
        ],
    },
    "coqa-train-v1.0.json": {"data": [coqa("t", "It rained.", ("Did it?", "yes"), ("Did it rain?", "Yes"))]},
}


def test_prompts_of_coqa_have_the_earlier_turns(tmp_path: Path) -> None:
    train = "It rained.\n\nQ: Did it?\n\nA: yes"
    asked = 'A duck sat.\n\n"Go!" \n\nQ: Who sat?\n\nA: a duck\n\nQ: Where?\n\nA:'
    assert prompts("coqa", write(tmp_path, COQA), item=1) == [
        asked,
        f"{train}\n\nQ: Did it rain?\n\nA: Yes\n\n{asked}",
        f"{train}\n\nQ: Did it rain?\n\nA: Yes\n\n{train}\n\n{asked}",
    ]
    first, second = load("coqa", str(tmp_path)).test
    assert first.context == 'A duck sat.\n\n"Go!" \n\nQ: Who sat?\n\nA:' and first.id == "d 1"
    assert first.answers == ("a duck", "the duck", "a duck"), "each person counts, also who says the same"
    assert second.answers == ("unknown", "", "here")


def quac(id: str, context: str, *turns: tuple[str, str, Sequence[str]]) -> dict[str, Any]:
    """A dialogue: each turn is a question, its answer in the dialogue, and all people's."""
    qas = [
        {"id": f"{id}_q#{n}", "question": q, "answers": [{"text": a} for a in all_], "orig_answer": {"text": own}}
        for n, (q, own, all_) in enumerate(turns)
    ]
    paragraphs = [{"context": context, "qas": qas, "id": id}]
    return {"title": "Mud Pie", "section_title": "Early life", "background": "Unused.", "paragraphs": paragraphs}


NO = "CANNOTANSWER"
QUAC: Files = {
    "val_v0.2.json": {
        "data": [
            quac(
                "C_1",
                f"A duck sat. {NO}",
                ("who sat?", NO, [NO, "A duck", NO]),
                ("where?", "sat.", ["A duck sat.", "sat."]),
            )
        ]
    },
    "train_v0.2.json": {
        "data": [quac("C_2", f"It rained. {NO}", ("did it?", "rained", ["rained"]), ("why?", NO, [NO]))]
    },
}


def test_prompts_of_quac_have_the_earlier_turns_and_no_mark_for_unanswerable(tmp_path: Path) -> None:
    data = write(tmp_path, QUAC)
    asked = "TITLE: Mud Pie - Early life\nPARAGRAPH: A duck sat.\n\nQ: who sat?\n\nA: {}\n\nQ: where?\n\nA:"
    shown = "TITLE: Mud Pie - Early life\nPARAGRAPH: It rained.\n\nQ: did it?\n\nA: rained"
    assert prompts("quac", data, item=1) == [
        asked.format(NO),
        f"{shown}\n\nQ: why?\n\nA: {NO}\n\n{asked.format(NO)}",
        f"{shown}\n\nQ: why?\n\nA: {NO}\n\n{shown}\n\n{asked.format(NO)}",
    ]
    first, second = load("quac", data).test
    assert second.answers == ("A duck sat.", "sat.") and second.completion == "sat.", "the one of the dialogue is shown"
    assert first.answers == (NO, "A duck", NO) and first.unanswerable == NO and first.id == "C_1_q#0"
    other = load("quac", data, "unanswerable=I do not know.").test
    assert other[1].context == asked.format("I do not know.")
    assert other[0].completion == "I do not know." and other[0].answers[1] == "A duck"


def squad(title: str, *paragraphs: tuple[str, Sequence[tuple[str, Sequence[str]]]]) -> dict[str, Any]:
    def one(n: int, question: str, answers: Sequence[str]) -> dict[str, Any]:
        plausible = {} if answers else {"plausible_answers": [{"text": "sat", "answer_start": 0}]}
        given = [{"text": text, "answer_start": 0} for text in answers]
        return {"id": f"{title}{n}", "question": question, "answers": given, "is_impossible": not answers} | plausible

    return {
        "title": title,
        "paragraphs": [
            {"context": context, "qas": [one(n, *each) for n, each in enumerate(asked)]}
            for context, asked in paragraphs
        ],
    }


SQUAD: Files = {
    "dev-v2.0.json": {
        "version": "v2.0",
        "data": [
            squad(
                "Mud_Pie_(song)",
                (
                    "A duck sat.",
                    [("Who sat?", ["A duck", "duck", "A duck"]), ("Why?", []), ("What did it do?", ["sat"])],
                ),
                ("It rained.", [("Did it?", [])]),
            )
        ],
    },
    "train-v2.0.json": {
        "data": [squad("Rain", ("It rained.", [("What did it do?", ["rained"])]), ("It rained on.", [("Why?", [])]))]
    },
}


def test_prompts_of_squad_have_the_earlier_questions_of_the_paragraph() -> None:
    asked = (
        "Title: Mud Pie (song)\n\nBackground: A duck sat.\n\nQ: Who sat?\n\nA: A duck\n\nQ: Why?\n\nA: unanswerable"
        "\n\nQ: What did it do?\n\nA:"
    )
    one = "Title: Rain\n\nBackground: It rained.\n\nQ: What did it do?\n\nA: rained"
    other = "Title: Rain\n\nBackground: It rained on.\n\nQ: Why?\n\nA: unanswerable"
    with tempfile.TemporaryDirectory() as folder:
        data = write(Path(folder), SQUAD)
        found = prompts("squadv2", data, item=2)
        items = load("squadv2", data).test
        others = load("squadv2", data, "unanswerable=none").test
    assert found == [
        asked,
        f"{one}\n\n{asked}",
        f"{one}\n\n{other}\n\n{asked}",
    ]
    assert [item.context.count("Q:") for item in items] == [1, 2, 3, 1], "another paragraph begins anew"
    assert items[0].answers == ("A duck", "duck") and items[1].answers == ("unanswerable",)
    (item,) = (item for item in others if "Did it" in item.context)
    assert item.completion == item.unanswerable == "none"


def drop(question: str, answer: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    return {"query_id": question, "question": question, "answer": answer, "validated_answers": list(others)}


def answer(number: str = "", spans: Sequence[str] = (), date: Sequence[str] = ("", "", "")) -> dict[str, Any]:
    day = dict(zip(("day", "month", "year"), date, strict=True))
    return {"number": number, "spans": list(spans), "date": day}


DROP: Files = {
    "drop_dataset_dev.json": {
        "nfl_1": {
            "passage": " A duck  sat 3 times.",
            "qa_pairs": [
                drop("Who and what?", answer(spans=["A duck", "3"]), answer(number="3"), answer()),
                drop("When?", answer(date=("", "May", "1920"))),
                drop("Why?", answer(), answer()),
            ],
        }
    },
    "drop_dataset_train.json": {
        "h_1": {
            "passage": "It rained.",
            "qa_pairs": [drop("How often?", answer("1")), drop("What?", answer("", ["It"]))],
        }
    },
}


def test_prompts_of_drop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = "Passage:  A duck  sat 3 times.\nQuestion: Who and what?\nAnswer:"
    one = "Passage: It rained.\nQuestion: How often?\nAnswer: 1"
    other = "Passage: It rained.\nQuestion: What?\nAnswer: It"
    assert prompts("drop", write(tmp_path, DROP)) == [
        asked,
        f"{one}\n\n{asked}",
        f"{one}\n\n{other}\n\n{asked}",
    ]
    with caplog.at_level("INFO"):
        both, date = load("drop", str(tmp_path)).test
    assert both.completion == "A duck, 3" and both.spans == (("A duck", "3"), ("3",)), "an empty answer is none"
    assert date.completion == "May 1920"
    assert "1 of 3 rows" in caplog.text, "a question without any answer is left out and counted"
    assert load("drop", str(tmp_path), "joiner= and ").test[0].completion == "A duck and 3"
    scored = METRICS["DROP F1"].score(both, Judgement(text="3, a duck"))
    assert scored == 1


@pytest.mark.parametrize(
    ("name", "files"),
    [("coqa", COQA), ("quac", QUAC), ("squadv2", SQUAD), ("drop", DROP)],
)
def test_no_demonstration_is_about_the_items_own_text(name: str, files: Files, tmp_path: Path) -> None:
    """The evaluated file is given for the demonstrations too, beside examples about other texts."""
    data = write(tmp_path, files)
    (task,) = select([name], [], data)
    apart = task.load(Source(data=data), task.options)
    own = load(name, data, f"train_file={tmp_path / next(iter(files))}").train or ()
    pool = [*own, *(apart.train or ())]
    for item in apart.test:
        shown = list(protocol.draw(Items(apart.test, pool, ""), item, 0, task))
        assert len(shown) == sum(each.group != item.group for each in pool) >= len(apart.train or ())
        assert item.group in item.context and not any(item.group in each.context for each in shown)


# ---- translation


TRANSLATION: Files = {
    "newstest2014.fra": "Un canard .\nIl pleut\u2028encore \n",
    "newstest2014.eng": "A duck.\n It rains again\n",
    "europarl-v7.fr-en.fr": "Oui.\n\nNon.\nTrop\n",
    "europarl-v7.fr-en.en": "Yes.\nNothing.\nNo.\nToo much\n",
}


def test_prompts_of_translation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("sacrebleu")
    data = write(tmp_path, TRANSLATION)
    with caplog.at_level("INFO"):
        assert prompts("wmt14_fr_en", data, "train_lines=3") == [
            "Q: What is the English translation of Un canard . A:",
            "Oui. = Yes.\nUn canard . =",
            "Oui. = Yes.\nNon. = No.\nUn canard . =",
        ]
    assert "1 of 3 rows" in caplog.text, "lines without a translation are counted"
    assert prompts("wmt14_en_fr", data, "train_lines=3") == [
        "Q: What is the French translation of A duck. A:",
        "Yes. = Oui.\nA duck. =",
        "Yes. = Oui.\nNo. = Non.\nA duck. =",
    ]
    apart = prompts("wmt14_en_fr", data, "zero_shot=two lines")[0]
    assert apart == "Q: What is the French translation of A duck.\nA:"
    items = load("wmt14_fr_en", data)
    assert [item.completion for item in items.test] == ["A duck.", "It rains again"]
    assert items.test[1].context == "Il pleut\u2028encore =", "lines end where the file ends them"
    assert items.train and [item.id for item in items.train] == ["0", "2", "3"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 1 << 20])
@pytest.mark.parametrize("text", ["a\nbé\n\nc\n", "a\r\nbé\n\nc", "\n"])
def test_the_first_lines_are_those_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, chunk: int
) -> None:
    path = tmp_path / "text"
    path.write_bytes(text.encode())
    monkeypatch.setattr(rows, "_CHUNK", chunk)
    every = rows.lines(str(path))
    for most in range(1, 6):
        assert rows.lines(str(path), most) == every[:most]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1}', ["item 0"]),
        ('[{"a": 1}, {"a": 2}]', ["item 0", "item 1"]),
        ('{"a":\n1}', ["item 0"]),
        ('{"a": 1}\n\n{"a": 2}\n', ["line 1", "line 3"]),
        ('{"a": 1}\n{"a"', "line 2 is not JSON"),
        ('{"a":\n1}\n{}', "line 3 is not JSON (Extra data)"),
        ("", "line 1 is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_json_is_a_document_or_lines_and_decoded_once(
    text: str, found: list[str] | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    read: list[str] = []
    once = rows.read_text

    def counted(path: str, lines: int | None = None) -> str:
        read.append(path)
        return once(path, lines)

    monkeypatch.setattr(rows, "read_text", counted)
    if isinstance(found, str):
        with pytest.raises(UserError, match=re.escape(found)):
            list(rows.objects(str(path)))
    else:
        assert [where for where, _ in rows.objects(str(path))] == [f"{path}, {each}" for each in found]
    assert len(read) == 1


def sgm(*sentences: str) -> str:
    segments = "\n".join(f'<seg id="{n}">{sentence}</seg>' for n, sentence in enumerate(sentences, start=1))
    return f'<srcset setid="newstest" srclang="any">\n<doc docid="1">\n<p>\n{segments}\n</p>\n</doc>\n</srcset>\n'


@pytest.mark.parametrize(
    ("task", "files", "pair"),
    [
        ("wmt16_ro_en", {"newstest2016.ro": "Da.\n", "newstest2016.en": "Yes.\n"}, ("Da.", "Yes.")),
        ("wmt16_en_ro", {"newstest2016.ron": "Da.\n", "newstest2016.eng": "Yes.\n"}, ("Yes.", "Da.")),
        (
            "wmt16_de_en",
            {"newstest2016-deen-src.de.sgm": sgm(" Ja &amp; so. "), "newstest2016-deen-ref.en.sgm": sgm("Yes.")},
            ("Ja &amp; so.", "Yes."),
        ),
        (
            "wmt16_en_de",
            {"x/newstest2016-ende-ref.de.sgm": sgm("Ja."), "x/newstest2016-ende-src.en.sgm": sgm("Yes.")},
            ("Yes.", "Ja."),
        ),
        (
            "wmt14_en_fr",
            {"newstest2014-fren-ref.fr.sgm": sgm("Oui."), "newstest2014-fren-src.en.sgm": sgm("Yes.")},
            ("Yes.", "Oui."),
        ),
        ("wmt14_fr_en", {"wmt14.fr-en.src": "Oui.\n", "wmt14.fr-en.ref": "Yes.\n"}, ("Oui.", "Yes.")),
        ("wmt14_en_fr", {"wmt14.en-fr.src": "Yes.\n", "wmt14.en-fr.ref": "Oui.\n"}, ("Yes.", "Oui.")),
        ("wmt14_fr_en", {"wmt14/fr-en.fr": "Oui.\n", "wmt14/fr-en.en": "Yes.\n"}, ("Oui.", "Yes.")),
    ],
)
def test_test_sets_are_found_by_the_names_people_have(
    tmp_path: Path, task: str, files: Files, pair: tuple[str, str]
) -> None:
    pytest.importorskip("sacrebleu")
    (item,) = load(task, write(tmp_path, files)).test
    assert (item.context.removesuffix(" ="), item.completion) == pair


def test_all_lines_of_a_training_text_can_be_drawn_from(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    data = write(tmp_path, TRANSLATION)
    assert [len(load("wmt14_fr_en", data, f"train_lines={n}").train or ()) for n in (1, 3, 0)] == [1, 2, 3]


# ---- perplexity

PTB = " no it was n't the company 's fault <unk> said \n a loss of $ N million or about N % \n"
WIKI = (
    " \n = Mud Pie = \n \n It was a song ( with ducks ) , 1 @,@ 000 @-@ fold . \n \n = = Early life = = \n \n"
    ' They said " quack " ; we \'re so sure . \n \n = Rain = \n \n It rained . \n'
)


def test_the_penn_treebank_is_read_as_people_write_it(tmp_path: Path) -> None:
    data = write(tmp_path, {"ptb.test.txt": PTB})
    (item,) = load("ptb", data).test
    assert item.completion == "no it wasn't the company's fault <unk> said\na loss of $N million or about N%\n"
    assert item.words == 10 + 10 + 2, "as published, with the ends of the lines"
    (bare,) = load("ptb", data, "detokenizer=none", "counted=words").test
    assert bare.completion == PTB and bare.words == 20
    metric = METRICS["perplexity per word"]
    judgement = Judgement(logprob=-40.0, tokens=9, words=17)
    assert metric.estimate(metric, [Scored(bare, 0, judgement)]).value == pytest.approx(2.718281828**2)


def test_wikitext_is_read_by_article(tmp_path: Path) -> None:
    items = load("wikitext2", write(tmp_path, {"wikitext-2-raw/wiki.test.raw": WIKI}))
    one, other = items.test
    assert one.completion == (
        "\n= Mud Pie =\n\nIt was a song (with ducks), 1,000-fold.\n\n= = Early life = =\n\n"
        'They said "quack"; we\'re so sure.\n\n'
    )
    assert other.completion == "= Rain =\n\nIt rained.\n"
    both = WIKI.count("\n") + len(WIKI.split())
    assert (one.words or 0) + (other.words or 0) == both
    whole = "".join(item.completion for item in load("wikitext2", str(tmp_path), "detokenizer=none").test)
    assert whole == WIKI


@pytest.mark.parametrize(
    ("published", "written"),
    [
        ("I 'm sure they 've said it 's theirs , do n't you ?", "I'm sure they've said it's theirs, don't you?"),
        ("rock 'n roll", "rock 'n roll"),
        ("a 5 @.@ 5 % rise , to $ 3", "a 5.5% rise, to $3"),
        ("[ a ] { b } ( c )", "[a] {b} (c)"),
        ("# 5 and 3\\/4", "#5 and 3/4"),
        ("well @-@ known", "well-known"),
        ("ca n't .", "can't."),
        ("= = Title = =", "= = Title = ="),
        ("the companies ' losses , the investors '", "the companies' losses, the investors'"),
        ("the banks ' .", "the banks'."),
    ],
)
def test_words_are_joined_as_people_write_them(published: str, written: str) -> None:
    assert perplexity.detokenised(published) == written


# ---- the Hub's rows


def parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def on_hub(name: str, task: str, rows: Sequence[dict[str, Any]], tmp_path: Path, split: str) -> Sequence[Item]:
    parquet(tmp_path / name / f"{split}-00000-of-00001.parquet", rows)
    return load(task, str(tmp_path)).test


def test_the_hubs_rows_give_the_examples_of_the_releases(tmp_path: Path) -> None:
    def released(name: str, files: Files) -> Sequence[Item]:
        return load(name, write(tmp_path / f"released {name}", files)).test

    def same(found: Sequence[Item], expected: Sequence[Item], *besides: str) -> None:
        fields = ("id", "context", "completion", "answers", "spans", "unanswerable", "zero_shot")
        for field in fields:
            if field not in besides:
                assert [getattr(item, field) for item in found] == [getattr(item, field) for item in expected], field

    given = TRIVIA["qa/wikipedia-dev.json"]["Data"][0]
    value, aliases, normalised = (given["Answer"][name] for name in ("Value", "Aliases", "NormalizedAliases"))
    hub = {"value": value, "aliases": aliases, "normalized_aliases": normalised}
    row: dict[str, Any] = {"question": given["Question"], "question_id": given["QuestionId"], "answer": hub}
    same(
        on_hub("trivia_qa/rc.wikipedia.nocontext", "triviaqa", [row], tmp_path / "t", "validation"),
        released("triviaqa", TRIVIA),
    )
    same(
        on_hub("nq_open/nq_open", "naturalqs", NATURAL["NQ-open.dev.jsonl"], tmp_path / "n", "validation"),
        released("naturalqs", NATURAL),
    )
    dialogue = COQA["coqa-dev-v1.0.json"]["data"][0]
    questions, answers = ([turn["input_text"] for turn in dialogue[name]] for name in ("questions", "answers"))
    row = {"source": "", "story": dialogue["story"], "questions": questions, "answers": {"input_text": answers}}
    there = write(tmp_path / "c", COQA)
    (tmp_path / "c" / "coqa-train-v1.0.json").unlink()
    parquet(tmp_path / "c" / "coqa" / "train-00000-of-00001.parquet", [row, row])
    found = load("coqa", there).train or ()
    same(found[:2], released("coqa", COQA), "id", "answers")
    assert [item.id for item in found] == ["0 1", "0 2", "1 1", "1 2"], "which does not depend on the folder"
    alone = tmp_path / "c" / "coqa" / "train-00000-of-00001.parquet"
    with pytest.raises(UserError, match=r"row 0: there are no 'additional_answers', .*; give the authors' coqa-dev-v1"):
        load("coqa", there, f"test_file={alone}")
    alone.rename(alone.with_name("validation-00000-of-00001.parquet"))
    (tmp_path / "c" / "coqa-dev-v1.0.json").unlink()
    with pytest.raises(UserError, match=r"no test split in .*; looked for coqa-dev-v1\.0\.json$"):
        load("coqa", there)
    dialogue = QUAC["val_v0.2.json"]["data"][0]
    (paragraph,) = dialogue["paragraphs"]
    row = {
        "dialogue_id": paragraph["id"],
        "wikipedia_page_title": dialogue["title"],
        "section_title": dialogue["section_title"],
        "context": paragraph["context"],
        "questions": [each["question"] for each in paragraph["qas"]],
        "answers": {"texts": [[one["text"] for one in each["answers"]] for each in paragraph["qas"]]},
        "orig_answers": {"texts": [each["orig_answer"]["text"] for each in paragraph["qas"]]},
    }
    same(on_hub("quac", "quac", [row], tmp_path / "q", "validation"), released("quac", QUAC))
    rows = [
        {
            "id": each["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": each["question"],
            "answers": {"text": [one["text"] for one in each["answers"]], "answer_start": []},
        }
        for article in SQUAD["dev-v2.0.json"]["data"]
        for paragraph in article["paragraphs"]
        for each in paragraph["qas"]
    ]
    same(on_hub("squad_v2", "squadv2", rows, tmp_path / "s", "validation"), released("squadv2", SQUAD))
    apart = on_hub("squad_v2", "squadv2", [*rows[::2], *rows[1::2]], tmp_path / "apart", "validation")
    assert sorted(item.context.count("Q:") for item in apart) == [1, 1, 2, 3], "rows of a paragraph may lie apart"
    section = DROP["drop_dataset_dev.json"]["nfl_1"]
    rows = [
        {
            "passage": section["passage"],
            "query_id": pair["query_id"],
            "question": pair["question"],
            "answer": pair["answer"],
            "validated_answers": {
                name: [each[name] for each in pair["validated_answers"]] for name in ("number", "spans", "date")
            },
        }
        for pair in section["qa_pairs"]
    ]
    same(on_hub("drop", "drop", rows, tmp_path / "d", "validation"), released("drop", DROP))
    pytest.importorskip("sacrebleu")
    rows = [{"translation": {"fr": "Oui. ", "en": "Yes."}}, {"translation": {"fr": "Non.", "en": "No."}}]
    found = on_hub("wmt14/fr-en", "wmt14_fr_en", rows, tmp_path / "w", "test")
    assert [(item.context, item.completion) for item in found] == [("Oui. =", "Yes."), ("Non. =", "No.")]
    rows = [{"text": line} for line in WIKI.splitlines(keepends=True)]
    same(
        on_hub("wikitext/wikitext-2-raw-v1", "wikitext2", rows, tmp_path / "x", "test"),
        released("wikitext2", {"wikitext-2-raw/wiki.test.raw": WIKI}),
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answers": {"texts": 5}}, "row 0, answers: 'texts' is a number; expected a list"),
        ({"answers": {"texts": ["x"]}}, "answers: 'texts[0]' is a text; expected a list of 1 to"),
        ({"orig_answers": {"texts": 5}}, "orig_answers: 'texts' is a number; expected a list"),
    ],
)
def test_a_broken_dialogue_of_the_hub_is_one_line(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "dialogue_id": "d",
        "wikipedia_page_title": "t",
        "section_title": "s",
        "context": "c",
        "questions": ["q"],
    }
    row |= {"answers": {"texts": [["a"]]}, "orig_answers": {"texts": ["a"]}, **fields}
    with pytest.raises(UserError, match=re.escape(message)):
        on_hub("quac", "quac", [row], tmp_path, "validation")


def test_an_alias_that_is_normalised_to_nothing_is_none(tmp_path: Path) -> None:
    row = trivia("tc_1", "Which article?", "The", "")
    found = load(
        "triviaqa", write(tmp_path, {"wikipedia-dev.json": {"Data": [row, *TRIVIA["qa/wikipedia-dev.json"]["Data"]]}})
    )
    assert found.test[0].answers == ("The",) and len(found.test) == 2


# ---- broken files


def changed(files: Files, path: Sequence[Any], value: Any) -> Files:
    """The first file with the value at `path`; with a function, the value is what it makes of the old one."""
    name = next(iter(files))
    content = copy.deepcopy(files[name])
    at = content
    for key in path[:-1]:
        at = at[key]
    if value is DELETED:
        del at[path[-1]]
    else:
        at[path[-1]] = value(at[path[-1]]) if isinstance(value, Callable) else value  # type: ignore[arg-type]
    return {name: content}


DELETED = object()
CLOSED_BOOK: list[tuple[str, Files, str]] = [
    ("triviaqa", changed(TRIVIA, ["Data"], {}), "item 0: 'Data' is an object; expected a list of objects"),
    ("triviaqa", changed(TRIVIA, ["Data", 0, "Question"], " "), "item 0, Data[0]: 'Question' is empty"),
    ("triviaqa", changed(TRIVIA, ["Data", 0, "Answer"], DELETED), "Data[0]: 'Answer' is missing; it has 'QuestionId'"),
    ("triviaqa", changed(TRIVIA, ["Data", 0, "Answer", "Value"], 3), "Data[0], Answer: 'Value' is a number"),
    (
        "triviaqa",
        changed(TRIVIA, ["Data", 0, "Answer", "Aliases"], "x"),
        "Answer: 'Aliases' is a text; expected a list",
    ),
    ("naturalqs", changed(NATURAL, [0, "answer"], []), "line 1: 'answer' has 0 entries; expected 1 to"),
    ("naturalqs", changed(NATURAL, [0, "answer"], "ducks"), "line 1: 'answer' is a text; expected a list"),
    ("naturalqs", {"NQ-open.dev.jsonl": []}, "NQ-open.dev.jsonl is empty"),
    ("webqs", changed(WEB, [0, "targetValue"], "Red Duck"), "item 0: 'targetValue' is 'Red Duck'; expected (list"),
    (
        "webqs",
        changed(WEB, [0, "targetValue"], '(list (description ""))'),
        "'targetValue' is '(list (description \"\"))'",
    ),
    ("webqs", changed(WEB, [0], ["x"]), "item 0 is a list; expected an object"),
    ("webqs", {"webquestions.examples.test.json": '[{"utterance": '}, "line 1 is not JSON"),
]
READING: list[tuple[str, Files, str]] = [
    ("coqa", changed(COQA, ["data", 0, "answers", 1, "turn_id"], 3), "answers[1]: 'turn_id' is 3; expected 2"),
    (
        "coqa",
        changed(COQA, ["data", 0, "answers"], lambda old: old[:1]),
        "data[0]: 'answers' has 1 entries for 2 quest",
    ),
    (
        "coqa",
        changed(COQA, ["data", 0, "additional_answers", "1"], lambda old: old[:1]),
        "'additional_answers[1]' has 1 entries for 2 questions",
    ),
    ("coqa", changed(COQA, ["data", 0, "story"], None), "data[0]: 'story' is null; expected text"),
    ("quac", changed(QUAC, ["data", 0, "paragraphs", 0, "qas", 0, "answers"], []), "qas[0]: 'answers' is empty"),
    ("quac", changed(QUAC, ["data", 0, "section_title"], DELETED), "data[0]: 'section_title' is missing"),
    ("quac", changed(QUAC, ["data", 0, "paragraphs", 0, "context"], 1), "paragraphs[0]: 'context' is a number"),
    (
        "squadv2",
        changed(SQUAD, ["data", 0, "paragraphs", 0, "qas", 1, "is_impossible"], False),
        "qas[1]: 'is_impossible' is false, and there is no answer",
    ),
    (
        "squadv2",
        changed(SQUAD, ["data", 0, "paragraphs", 0, "qas", 0, "is_impossible"], True),
        "qas[0]: 'is_impossible' is true, and there are 3",
    ),
    (
        "squadv2",
        changed(SQUAD, ["data", 0, "paragraphs", 0, "qas", 0, "answers", 1, "text"], ""),
        "qas[0], answers[1]: 'text' is empty",
    ),
    ("drop", changed(DROP, ["nfl_1", "qa_pairs", 0, "answer"], DELETED), "qa_pairs[0]: 'answer' is missing"),
    (
        "drop",
        changed(DROP, ["nfl_1", "qa_pairs", 1, "answer", "date", "year"], 1920),
        "qa_pairs[1], answer, date: 'year' is a number",
    ),
    ("drop", changed(DROP, ["nfl_1"], []), "'nfl_1' is a list; expected an object"),
    (
        "drop",
        changed(DROP, ["nfl_1", "qa_pairs", 0, "validated_answers"], {"number": 5}),
        "qa_pairs[0], validated_answers: 'number' is a number; expected a list",
    ),
    (
        "drop",
        changed(DROP, ["nfl_1", "qa_pairs", 0, "validated_answers"], 5),
        "qa_pairs[0]: 'validated_answers' is a number; expected a list of objects",
    ),
    ("coqa", changed(COQA, ["data", 0, "additional_answers"], {}), "data[0]: there are no 'additional_answers'"),
    ("coqa", changed(COQA, ["data", 0, "additional_answers"], [1]), "'additional_answers' is a list; expected an obj"),
    (
        "drop",
        {"drop_dataset_dev.json": {"passage": "x", "question": "y", "answers_spans": {"spans": ["a", "b"]}}},
        "'answers_spans' holds the spans of all people in one list",
    ),
    (
        "drop",
        {"drop_dataset_dev.json": {"passage": "x", "question": "y", "answers": []}},
        "'answers' is []; expected a l",
    ),
]
PARALLEL: list[tuple[str, Files, str]] = [
    (
        "wmt14_fr_en",
        {"newstest2014.fr": "Oui.\n"},
        "newstest2014.fr: its English lines are not there; expected newstest2014.en beside it",
    ),
    (
        "wmt14_fr_en",
        {"newstest2014.fr": "Oui.\nNon.\n", "newstest2014.en": "Yes.\n"},
        "newstest2014.en has 1; expected as many",
    ),
    ("wmt14_fr_en", {"newstest2014.fr": "", "newstest2014.en": "Yes.\n"}, "newstest2014.fr is empty"),
    ("wmt14_fr_en", {"newstest2014.fr": "Oui.\n", "newstest2014.en": ""}, "newstest2014.en is empty"),
    (
        "wmt14_fr_en",
        {"newstest2014.fr": "\n", "newstest2014.en": "Yes.\n"},
        "newstest2014.fr has no row with a label",
    ),
    (
        "wmt16_de_en",
        {"newstest2016-deen-src.de.sgm": "Ja.\n", "newstest2016-deen-ref.en.sgm": sgm("Yes.")},
        "newstest2016-deen-src.de.sgm has no <seg>; expected a test set of WMT",
    ),
    (
        "wmt16_de_en",
        {"newstest2016-deen-src.de.sgm": sgm("Ja.")},
        "its English lines are not there; expected newstest2016-deen-ref.en.sgm beside it",
    ),
    (
        "wmt14_fr_en",
        {"a/newstest2014.fr": "Oui.\n", "b/newstest2014.fr": "Oui.\n"},
        "has 2 candidates for the test split",
    ),
    ("wmt16_ro_en", {}, "no test split in"),
    ("ptb", {"ptb.test.txt": ""}, "ptb.test.txt is empty"),
    ("ptb", {"ptb.valid.txt": PTB}, "looked for ptb.test.txt or the Hub's ptb_text_only (test)"),
]


@pytest.mark.parametrize(
    ("name", "files"),
    [("triviaqa", TRIVIA), ("naturalqs", NATURAL), ("webqs", WEB), ("coqa", COQA), ("quac", QUAC), ("squadv2", SQUAD),
     ("drop", DROP)],
)  # fmt: skip
def test_no_value_of_another_kind_is_a_traceback(name: str, files: Files, tmp_path: Path) -> None:
    first = next(iter(files))
    for each in wrong_kinds(files[first]):
        data = write(tmp_path, {first: each})
        with contextlib.suppress(UserError):  # any other error is one
            load(name, data)


@pytest.mark.parametrize(("task", "files", "message"), [*CLOSED_BOOK, *READING, *PARALLEL])
def test_a_broken_file_ends_in_one_line_with_file_place_and_field(
    tmp_path: Path, task: str, files: Files, message: str
) -> None:
    if task.startswith("wmt"):
        pytest.importorskip("sacrebleu")
    data = write(tmp_path, files)
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        load(task, data)
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


def test_a_file_that_does_not_say_its_language_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    data = write(tmp_path, {"mine.txt": "Oui.\n"})
    with pytest.raises(
        UserError, match=r"mine\.txt: the name does not say that it is French; expected it to end in \.fr"
    ):
        load("wmt14_fr_en", data, f"test_file={data}/mine.txt")


# ---- the entries


def test_entries_are_rows_of_table_h1() -> None:
    for name, count in (("closed-book", 3), ("reading", 4), ("translation", 6)):
        assert len(GROUPS[name]) == count
        for task in GROUPS[name]:
            row = table_h1.row_of(task.row, task.metrics[0])
            assert row is not None and row.shots == task.shots, task.name
            of_set = {"test": "test", "validation": "dev"}[task.splits[0]]
            assert row.split == of_set or task.name == "naturalqs"  # whose dev split is the open questions' test
            assert {"stop", "max_tokens", "separator", "delimiter"} <= set(task.settings())
    assert table_h1.paper_value("En->Fr 14", "BLEU", 64, "175B") == 39.9
    assert table_h1.paper_value("En->Fr 14", "BLEU 13a", 64, "175B") is None, "the paper's mb has another tokenizer"
    assert table_h1.paper_value("SQuADv2", "SQuAD exact match", 16, "175B") == 64.9
    assert table_h1.paper_value("SQuADv2", "SQuAD F1", 16, "175B") == 69.8
