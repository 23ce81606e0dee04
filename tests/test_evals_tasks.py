"""The tasks: what is generated and read, and what is said of files that are broken."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from gpt3_jax.config import preset
from gpt3_jax.data.tokenize import tokenize
from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.data.writer import ShardWriter
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.evals import table_h1
from gpt3_jax.evals.tasks import analogies, arithmetic, openai_files, words
from gpt3_jax.evals.tasks.item import Item, Items
from gpt3_jax.evals.tasks.select import GROUPS, TASKS, select
from gpt3_jax.evals.tasks.task import Source

WORDS = ["apple", "banana", "cherry", "durian", "elderberry", "level", "hannah", "aaaaaa", "grapefruit", "melon"]


def load(name: str, *settings: str, words: str | None = None) -> Items:
    (task,) = select([name], settings)
    return task.load(Source(words=words), task.options)


@pytest.fixture
def word_list(tmp_path: Path) -> str:
    path = tmp_path / "words"
    path.write_text("\n".join(["Apple", "it's", "tiny", "waytoolongforthistask", "naïve", *WORDS, "apple"]) + "\n")
    return str(path)


# ---- generated


@pytest.mark.parametrize("name", [task.name for task in arithmetic.TASKS])
def test_arithmetic_is_right_and_in_openais_format(name: str) -> None:
    items = load(name, "items=400")
    assert len({item.context for item in items.test}) == len(items.test) == 400 and items.train is items.test
    for item in items.test:
        found = re.fullmatch(r"Q: What is (.+)\?\n\nA:", item.context)
        assert found
        asked = found[1].replace("plus", "+").replace("minus", "-").replace("times", "*")
        if name == "sum_of_digits":
            asked = "+".join(re.sub(r"\D", "", asked))
        assert re.fullmatch(r"[\d+]+|\d+ [-+*] \d+|\(\d [-+*] \d\) [-+*] \d", asked)
        assert int(item.completion) == eval(re.sub(r"\b0+(?=\d)", "", asked))


def test_operands_are_uniform_from_0() -> None:
    numbers = [int(n) for item in load("two_digit_addition").test for n in re.findall(r"\d+", item.context)]
    assert min(numbers) == 0 and max(numbers) == 99
    tens = Counter(n // 10 for n in numbers)
    assert sum((tens[ten] - 400) ** 2 / 400 for ten in range(10)) < 28  # chi-squared, 9 degrees of freedom, p 0.001
    assert min(int(item.completion) for item in load("two_digit_subtraction").test) < -80


def test_three_operations_bracket_the_numbers_that_the_setting_says() -> None:
    assert all(re.search(r"\(\d . \d\) . \d\?", item.context) for item in load("single_digit_three_ops").test)
    last = load("single_digit_three_ops", "brackets=last").test
    assert all(re.search(r"is \d . \(\d . \d\)\?", item.context) for item in last)


def test_the_seed_gives_the_items() -> None:
    assert load("two_digit_addition").test == load("two_digit_addition").test
    assert load("two_digit_addition").test != load("two_digit_addition", "item_seed=1").test
    # If this changes, results of earlier versions cannot be repeated: do it for a good reason only.
    assert load("two_digit_addition").test[0] == Item("0", "Q: What is 12 plus 90?\n\nA:", "102")
    assert load("five_digit_subtraction", "items=3").test == load("five_digit_subtraction").test[:3]
    with pytest.raises(UserError, match="there are not that many different questions"):
        load("two_digit_addition", "items=10001")


def test_words_are_scrambled_as_each_task_says(word_list: str) -> None:
    def scrambled(name: str) -> dict[str, str]:
        items = load(name, words=word_list)
        assert all(item.context.endswith(" =") for item in items.test)
        return {item.completion: item.context.removesuffix(" =") for item in items.test}

    for word, found in scrambled("cycle_letters_in_word").items():
        assert found != word and found in word + word and len(found) == len(word)
    for name, fixed in (("mid_word_1_anagrams", 1), ("mid_word_2_anagrams", 2)):
        for word, found in scrambled(name).items():
            assert found != word and sorted(found) == sorted(word)
            assert (found[:fixed], found[-fixed:]) == (word[:fixed], word[-fixed:])
    for word, found in scrambled("random_insertion_in_word").items():
        assert found[::2] == word and set(found[1::2]) <= set(" ./!") and len(found) == 2 * len(word) - 1
    assert set(scrambled("random_insertion_in_word")) == set(WORDS), "5 to 14 lower-case letters, each word once"
    reversed_words = scrambled("reversed_words")
    assert all(found == word[::-1] for word, found in reversed_words.items())
    assert set(reversed_words) == set(WORDS) - {"level", "hannah", "aaaaaa"}, "palindromes are left out"
    assert len(load("reversed_words", "items=3", words=word_list).test) == 3


def test_a_machine_without_words_says_what_to_give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(words, "LISTS", (str(tmp_path / "none"),))
    with pytest.raises(UserError, match=r"this machine has no list of words \(.*none\); give one with --words FILE"):
        load("reversed_words")
    short = tmp_path / "short"
    short.write_text("a\nbb\nHannah\n")
    with pytest.raises(UserError, match="has no word of 5 to 14 lower-case letters"):
        load("reversed_words", words=str(short))
    monkeypatch.setattr(words, "LISTS", (str(short),))
    short.write_text("hannah\n")
    with pytest.raises(UserError, match="has no word that reversed_words could scramble"):
        load("reversed_words")


# ---- files


def write(path: Path, rows: Sequence[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(rows: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"context": context, "completion": completion} for context, completion in rows]


def test_generated_rows_and_openais_files_are_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "three_digit_addition.jsonl"
    with path.open("w") as file:
        rows = arithmetic.rows("three_digit_addition", arithmetic._pair, {"items": 50, "item_seed": 0})
        openai_files.write(file, rows)
    assert path.read_text().startswith('{"context": "\\n\\nQ: What is ')
    (task,) = select([str(path)])
    assert load(str(path)).test == load("three_digit_addition", "items=50").test
    generated = TASKS["three_digit_addition"]
    for field in ("scoring", "metrics", "shots", "delimiter", "row", "instruction", "instructed", "leading"):
        assert getattr(task, field) == getattr(generated, field)
    assert "items" not in task.settings() and "stop" in task.settings()
    packed = tmp_path / "reversed_words.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps({"context": "\ntaefed =", "completion": " defeat"}).encode()))
    (task,) = select([str(packed)])
    assert task.row == "Reversed Words" and load(str(packed)).test == [Item("0", "taefed =", "defeat")]


def test_a_published_file_is_taken_from_the_folder_of_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "two_digit_addition.jsonl", pairs([("\n\nQ: What is 98 plus 45?\n\nA:", " 143")]))
    caplog.set_level("INFO", "gpt3_jax")
    names = ["two_digit_addition,two_digit_subtraction", "two_digit_addition"]
    first, second = select(names, data=str(tmp_path))
    assert first.load(Source(), first.options).test == [Item("0", "Q: What is 98 plus 45?\n\nA:", "143")]
    assert second is TASKS["two_digit_subtraction"]
    assert "has no two_digit_subtraction.jsonl or .jsonl.gz; the task is generated" in caplog.text
    with pytest.raises(UserError, match="the folder of data sets 'none' is not there"):
        select(["two_digit_addition"], data="none")


def test_another_file_is_taken_as_it_is(tmp_path: Path) -> None:
    file = write(tmp_path / "capitals.jsonl", pairs([("\nFrance:", " Paris"), ("\n\nSpain:", " Madrid")]))
    (task,) = select([file])
    assert (task.name, task.row, task.delimiter, task.separator, task.leading) == ("capitals", None, "\n", " ", True)
    assert load(file).test == [Item("0", "France:", "Paris"), Item("1", "\nSpain:", "Madrid")]
    file = write(tmp_path / "bare.jsonl", pairs([("France:", "Paris"), ("Spain:", " Madrid")]))
    (task,) = select([file])
    assert (task.delimiter, task.separator, task.leading) == ("\n\n", "", False)
    assert load(file).test == [Item("0", "France:", "Paris"), Item("1", "Spain:", " Madrid")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"F is empty; expected one JSON object a line"),
        (b"\n \n", r"F is empty"),
        (
            b'{"context": "a", "completion": " b"}\n{"context": "a"}\n',
            r"F, line 2: 'completion' is missing; it has 'con",
        ),
        (b"{}", r"F, line 1: 'context' is missing; the object is empty"),
        (b'{"context": 3, "completion": "b"}', r"F, line 1: 'context' is a number; expected text"),
        (b'{"context": "a", "completion": null}', r"F, line 1: 'completion' is null; expected text"),
        (b'{"context": "a", "completion": ["b"]}', r"F, line 1: 'completion' is a list; expected text"),
        (b'{"context": "a", "completion": " "}', r"F, line 1: 'completion' is empty; expected text"),
        (
            b'\n{"context": "a", "compl',
            r"F, line 2 is not JSON \(Unterminated string.*\): \{\"context\": \"a\",",
        ),
        (b'{"context": "a\\ud83d", "completion": "b"}', r"F, line 1: 'context' has half a character, '\\ud83d'"),
        (b"[1, 2]", r"F, line 1 is a list; expected an object: \[1, 2\]"),
        (b"[" * 100_000, r"F, line 1 is not JSON \(RecursionError\): \[\[\[.*\.\.\.; expected one object a line"),
        (b'{"context": "a",\n"completion": "caf\xe9"}', r"F, line 2 is not UTF-8 text \(byte 35\)"),
        ("{}".encode("utf-16"), r"F is UTF-16 text; expected UTF-8 text"),
        (gzip.compress(b"{}", mtime=0), r"F is gzip; expected UTF-8 text; name it .*\.jsonl\.gz"),
    ],
)
def test_a_broken_file_ends_in_one_line_with_file_line_and_field(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("two_digit_addition.jsonl", "unknown.jsonl"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=message.replace("F", re.escape(str(path)), 1)) as caught:
            load(str(path))
        assert "\n" not in str(caught.value)


def test_a_truncated_gzip_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "reversed_words.jsonl.gz"
    whole = gzip.compress(json.dumps({"context": "\ntaefed =", "completion": " defeat"}).encode())
    path.write_bytes(whole[:-9])
    with pytest.raises(RunError, match=r"reversed_words\.jsonl\.gz ends in the middle of its gzip stream; it is tr"):
        load(str(path))
    path.write_bytes(b"")
    with pytest.raises(RunError, match="is empty, which is not a valid compressed file"):
        load(str(path))
    with pytest.raises(UserError, match=r"none\.jsonl is not there"):
        load(str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="is a folder; expected a regular file"):
        load(f"{tmp_path}/")


STEM = {"stem": ["lull", "trust"], "choices": [["balk", "fortitude"], ["cajole", "compliance"]], "answer": 1}
BLOCKS = """# comment
190 FROM REAL SATs
lull trust v:n
balk fortitude v:n
cajole compliance v:n
b

another source
a b
c d
e f
g h
A
"""


def test_analogies_are_read_in_both_formats(tmp_path: Path) -> None:
    expected = Item(
        "0",
        "lull is to trust as",
        "cajole is to compliance",
        ("balk is to fortitude", "cajole is to compliance"),
        (1,),
    )
    assert load(f"analogies:{write(tmp_path / 'sat.jsonl', [STEM])}").test == [expected]
    (tmp_path / "sat.txt").write_text(BLOCKS)
    first, second = load(f"analogies:{tmp_path / 'sat.txt'}").test
    assert first == expected and second.right == (0,) and second.choices == ("c is to d", "e is to f", "g is to h")
    assert analogies.task("sat.txt").row == "SAT Analogies"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"stem": ["a"]}, "'stem' has 1 entries; expected 2"),
        ({"stem": "a b"}, "'stem' is a text; expected a list of 2 texts"),
        ({"stem": ["a", 1]}, "'stem' holds 1; expected texts"),
        ({"choices": [["a", "b"]]}, "'choices' is not a list of 2 to 5 pairs"),
        ({"choices": [["a", "b"], ["c"]]}, r"'choices\[1\]' has 1 entries; expected 2"),
        ({"answer": 2}, "'answer' is 2; expected the right choice's number, 0 to 1"),
        ({"answer": True}, "'answer' is True"),
        ({"answer": "b"}, "'answer' is 'b'"),
    ],
)
def test_broken_analogies_are_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    file = write(tmp_path / "sat.jsonl", [STEM, STEM | row])
    with pytest.raises(UserError, match=rf"sat\.jsonl, line 2: {message}"):
        load(f"analogies:{file}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "sat.txt holds no question"),
        (BLOCKS.replace("\nb\n", "\nc\n"), "line 6: the answer is 'c'; expected a letter, a to b"),
        (BLOCKS.replace("lull trust v:n", "lull"), "line 3: the stem 'lull' is not a pair of words"),
        (BLOCKS.replace("c d\ne f\ng h\n", ""), "line 8: the question has 3 lines; expected source, stem, 2 to 5"),
    ],
)
def test_broken_blocks_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "sat.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        load(f"analogies:{tmp_path / 'sat.txt'}")


def test_texts_are_documents_of_files_and_token_shards(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one text\nof two lines\n")
    assert [item.completion for item in load(f"text:{tmp_path / 'a.txt'}").test] == ["one text\nof two lines\n"]
    several = write(tmp_path / "b.jsonl", [{"text": "first"}, {"text": ""}, {"text": "second é"}])
    assert [(item.id, item.completion) for item in load(f"text:{several}").test] == [("0", "first"), ("2", "second é")]
    tokenize([several], tmp_path / "shards", tokenizer="bytes")
    shards = load(f"text:{tmp_path / 'shards'}")
    assert [item.completion for item in shards.test] == ["first", "second é"] and shards.train is None
    assert [item.completion for item in shards.test[:1]] == ["first"]
    with ShardWriter(tmp_path / "foreign", ByteTokenizer(), {}) as writer:
        eot = ByteTokenizer().eot
        tokens = [eot, *b"one", eot, eot, *b"2", eot, eot]
        writer.append(np.array(tokens), np.array([1, 4, 1, 2, 1]), 4)
        writer.commit({})
        writer.finish()
    foreign = load(f"text:{tmp_path / 'foreign'}").test
    assert [(item.id, item.completion) for item in foreign] == [("1", "one"), ("3", "2")], "empty ones are skipped"
    assert [item.id for item in foreign[1:]] == ["3"] and len(foreign) == 2
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match=r"empty\.txt holds no text"):
        load(f"text:{tmp_path / 'empty.txt'}")


# ---- names


def test_groups_are_the_papers() -> None:
    assert [len(GROUPS[name]) for name in ("arithmetic", "words")] == [10, 5]
    rows = [task.row for name in ("arithmetic", "words") for task in GROUPS[name]]
    assert set(rows) == {row.task for row in table_h1.table_h1() if row.split == "n/a"} - {"SAT Analogies"}
    for group in GROUPS.values():
        for task in group:
            row = table_h1.row_of(task.row, task.metrics[0])
            assert row is not None and row.shots == task.shots, "K of Table H.1"


def test_names_are_joined_by_commas_and_each_task_is_taken_once() -> None:
    assert [task.name for task in select(["two_digit_addition,words", "two_digit_addition"])] == [
        "two_digit_addition",
        *(task.name for task in GROUPS["words"]),
    ]


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["arithmetics"], [], "unknown task 'arithmetics'; the nearest is arithmetic"),
        (["zzz"], [], "unknown task 'zzz'; there are paper, arithmetic, words, "),
        (["gs://b/x.jsonl"], [], "'gs://b/x.jsonl' is an address"),
        (["text:gs://b/x"], [], "'gs://b/x' is an address"),
        (["./README.jsonl,x"], [], "README.jsonl is not there"),
        (["text:a/b.txt", "text:c/b.txt"], [], "two tasks are named text:b.txt; evaluate one of them at a time"),
        (["words"], ["stop"], "--set 'stop' has no value"),
        (["words"], ["step=1"], "no task has an open setting 'step'; there are decoding, instructed, item_seed"),
        (["words"], ["two_digit_addition.stop=x"], "'two_digit_addition' is not among the tasks"),
    ],
)
def test_unknown_names_are_refused(names: list[str], settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        select(names, settings)


# ---- Table H.1


def test_table_h1_is_the_papers() -> None:
    rows = table_h1.table_h1()
    assert len(rows) == 63 and all(len(row.values) == 24 for row in rows)
    assert table_h1.paper_value("2D+", "exact match", 50, "175B") == 100.0
    assert table_h1.paper_value("2D+", "exact match", 0, "13B") == 15.4
    assert table_h1.paper_value("SAT Analogies", "accuracy", 20, "175B") == 65.2
    assert table_h1.paper_value("Reversed Words", "exact match", 1, "Small") == 0.02
    assert table_h1.paper_value("2D+", "exact match", 10, "175B") is None, "a K that the table does not have"
    assert table_h1.paper_value(None, "exact match", 0, "175B") is None


def test_each_size_is_found_by_its_shape() -> None:
    assert [table_h1.size_of(preset(name).model) for name in table_h1.SIZES.values()] == list(table_h1.SIZES)
