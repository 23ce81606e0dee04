"""Contamination: what is planted is found and nothing else, the paper's N, and the scores of clean and dirty items."""

from __future__ import annotations

import json
import math
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt3_jax.cli import main as command_line
from gpt3_jax.data.tokenize import tokenize
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.evals import written
from gpt3_jax.evals.evaluation import ITEMS, load_tasks
from gpt3_jax.evals.run import TaskItems
from gpt3_jax.evals.tasks.select import select
from gpt3_jax.ngrams import finder
from gpt3_jax.ngrams.corpus import Corpus
from gpt3_jax.ngrams.words import normalised
from gpt3_jax.reports import contamination_scores, table_c1
from gpt3_jax.reports.contamination import Settings, Study, choose_n, study

SYLLABLES = ["ba", "ke", "li", "mo", "nu", "pra", "ste", "vi", "zor", "wen"]


def sentence(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(count)]


def disguised(rng: random.Random, words: list[str]) -> str:
    """The same words in other case, with other punctuation and white space between."""
    cases, between = [str.upper, str.title, str.lower], [", ", "\n", " — ", "  ", ". ", '" ', "/"]
    return "".join(rng.choice(cases)(word) + rng.choice(between) for word in words)


def plant(folder: Path, filler: int, seed: int = 0) -> tuple[Path, list[str], set[int]]:
    """A task of 60 items in a file, a corpus in which every third of them is planted, and which those are. One more in
    three shares only 12 words with the corpus, which is not enough."""
    rng = random.Random(seed)
    items = [sentence(rng, rng.randint(14, 40)) for _ in range(60)]
    rows = [{"context": " ".join(each[:-1]) + " is", "completion": " " + each[-1]} for each in items]
    (folder / "planted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts, dirty = [], set()
    for number, each in enumerate(items):
        text = [*each[:-1], "is", each[-1]]
        around = [" ".join(sentence(rng, rng.randint(0, filler))) for _ in range(2)]
        if number % 3 == 0:
            first = rng.randrange(len(text) - 12)
            part = text[first : first + 13]
            planted = " ".join(part) if number % 2 else disguised(rng, part)
            texts.append(f"{around[0]} {planted} {around[1]}")
            dirty.add(number)
        elif number % 3 == 1:
            first = rng.randrange(len(text) - 12)
            texts.append(f"{around[0]} {' '.join(text[first : first + 12])} {around[1]}")
            # The thirteenth word begins the next document: no document holds thirteen.
            texts.append(" ".join(text[first + 12 : first + 20]) + " " + around[1])
        else:
            texts.append(around[0])
    return folder / "planted.jsonl", texts, dirty


def look_for(file: Path, corpus: Corpus, **settings: Any) -> Study:
    return study(load_tasks(select([str(file)])), corpus, Settings(**settings))


def dirty_of(found: Study) -> set[int]:
    return {int(each.item.id) for each in found.tasks[0].items if each.dirty}


@pytest.mark.parametrize("chunk", [50, 1 << 18])
def test_what_is_planted_is_found_and_nothing_else(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Precision and recall are 1: exact, in other case and with other punctuation, across the border of shards."""
    monkeypatch.setattr(finder, "CHUNK", chunk)
    file, texts, dirty = plant(tmp_path, 60)
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    # A shard holds fewer tokens than a planted passage, so that each passage straddles a border.
    tokenize([str(tmp_path / "corpus.jsonl")], tmp_path / "shards", "bytes", shard_tokens=50)
    for path in ("corpus.jsonl", "shards"):
        found = look_for(file, Corpus([str(tmp_path / path)]))
        assert found.tasks[0].n == 13
        assert dirty_of(found) == dirty
        for each in found.tasks[0].items:
            if each.dirty:
                [(document, character, gram, times), *_] = each.places
                number = int(document.rpartition(" ")[2]) - (path != "shards")
                assert times == 1
                assert normalised(texts[number][character:]).startswith(gram)


@pytest.mark.slow
def test_what_is_planted_in_a_document_of_100_megabytes_is_found(tmp_path: Path) -> None:
    file, texts, dirty = plant(tmp_path, 60)
    rng = random.Random(1)
    filler = [" ".join(sentence(rng, 20_000)) for _ in range(10)]
    with open(tmp_path / "long.txt", "w") as out:
        for text in texts:
            out.write(f"{text}\n")
            for _ in range(17):
                out.write(rng.choice(filler) + "\n\n")
    assert (tmp_path / "long.txt").stat().st_size > 100e6
    tokenize([str(tmp_path / "long.txt")], tmp_path / "shards", "bytes", shard_tokens=1 << 22)
    for path in ("long.txt", "shards"):
        corpus = Corpus([str(tmp_path / path)])
        found = look_for(file, corpus)
        assert found.looked.took.size.documents == 1
        assert dirty_of(found) == dirty


def loaded(*names: str, **more: Any) -> list[TaskItems]:
    return load_tasks(select(names), **more)


@pytest.mark.parametrize(
    ("task", "lengths", "n"),
    [
        ("piqa", [3] * 10 + [30] * 90, 8),  # 5th percentile 3: at least 8
        ("piqa", [9] * 5 + [30] * 95, 9),  # one in twenty
        ("piqa", [9] * 4 + [30] * 96, 13),  # at most 13
        ("piqa", [11], 11),
        ("reversed_words", [2] * 100, 2),  # generated: no least N
        ("random_insertion_in_word", [4] * 4 + [7] * 96, 7),
    ],
)
def test_n_is_the_fifth_percentile_within_bounds(task: str, lengths: Sequence[int], n: int) -> None:
    assert choose_n(task, lengths, Settings()) == n
    assert choose_n(task, lengths, Settings(n=5)) == 5


def test_generated_word_tasks_have_the_papers_n(tmp_path: Path) -> None:
    """Punctuation separates words, or Symbol Insertion would not have 7."""
    words = ["orange", "banana", "cherry", "grapes", "elephant", "mountain", "reciprocal", "succession"] * 3
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "text.txt").write_text("egnaro, Orange!")
    tasks = loaded("words", words=tmp_path / "words.txt")
    found = study(tasks, Corpus([str(tmp_path / "text.txt")]))
    for each in found.tasks:
        row = table_c1.row_of(each.task.row)
        assert row is not None
        assert each.n == row.n
    assert {each.task.name: each.dirty for each in found.tasks if each.dirty} == {"reversed_words": 1}


def write(folder: Path, items: list[tuple[str, str]], texts: list[str]) -> tuple[Path, Corpus]:
    rows = [{"context": context, "completion": completion} for context, completion in items]
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder / "task.jsonl", Corpus([str(folder / "text.jsonl")])


def test_settings(tmp_path: Path) -> None:
    ten = "one two three four five six seven eight nine ten"
    file, corpus = write(
        tmp_path,
        [
            (ten, " eleven"),
            ("short one", " here"),
            ("i ii iii iv v vi vii viii ix x", " xi"),
            ("a-b c d e f g h", " i"),
        ],
        [f"{ten} twelve"] * 11 + ["a short one here", "x xi", "ab c d e f g h i"],
    )

    def dirty(**settings: Any) -> set[int]:
        return dirty_of(look_for(file, corpus, **settings))

    assert dirty() == {0}  # by 8-grams: the first ten words
    assert dirty(match="context") == {0}
    assert dirty(match="completion") == set()
    assert dirty(n=2) == {0, 1, 2, 3}
    assert dirty(n=11) == set()
    assert dirty(short="whole") == {0, 1}
    assert dirty(punctuation="deleted") == {0, 3}
    assert dirty(ignore_above=11) == {0}  # "more than": 11 documents do
    assert dirty(ignore_above=10) == set()
    with pytest.raises(UserError, match="--n is 0; expected at least 1"):
        Settings(n=0)


RIGHT = [1, 0, 1, 1, 0, 1, 0, 0]
DIRTY = {0, 2, 3}


def evaluated(folder: Path, **change: Any) -> tuple[Study, Path]:
    """A study of eight items of which three are dirty, and results of an evaluation of them with two seeds."""
    rng = random.Random(5)
    items = [(" ".join(sentence(rng, 20)), " " + sentence(rng, 1)[0]) for _ in range(8)]
    file, corpus = write(folder, items, [items[number][0] for number in sorted(DIRTY)])
    found = look_for(file, corpus)
    assert dirty_of(found) == DIRTY
    records = [
        {
            "model": "m", "task": "task", "shots": 0, "seed": seed, "item": each.item.id,
            "fingerprint": each.item.fingerprint(), "prompts": ["p"],
            "scores": {"exact match": RIGHT[int(each.item.id)], "loss per token": 2.0 + int(each.item.id)},
            "weights": {"exact match": 1, "loss per token": 1 + int(each.item.id) % 2}, **change,
        }
        for seed in (0, 1)
        for each in found.tasks[0].items
    ]  # fmt: skip
    (folder / "results").mkdir(exist_ok=True)
    (folder / "results" / ITEMS).write_text("".join(json.dumps(record) + "\n" for record in records))
    return found, folder / "results"


def test_scores_of_all_clean_and_dirty_items_with_their_errors() -> None:
    check_scores()


def check_scores() -> None:
    with tempfile.TemporaryDirectory() as folder:
        _check_scores(Path(folder))


def _check_scores(folder: Path) -> None:
    found, results = evaluated(folder)
    exact, loss = contamination_scores.scores(found, str(results))
    assert (exact.metric, exact.all.items, exact.clean.items, exact.dirty.items) == ("exact match", 8, 5, 3)
    assert (exact.all.value, exact.clean.value, exact.dirty.value) == (50, 20, 100)
    assert exact.all.stderr == pytest.approx(100 * math.sqrt(0.25 / 7))  # sqrt(p (1 - p) / (n - 1))
    assert exact.clean.stderr == pytest.approx(100 * math.sqrt(0.16 / 4))
    assert exact.dirty.stderr == 0
    assert exact.relative == pytest.approx(-60)  # 20 of 50
    assert exact.clean.stderr is not None
    assert exact.relative_stderr == pytest.approx(100 * (3 / 8) * exact.clean.stderr / 50)
    # A ratio of sums: dirty are the items 0, 2 and 3.
    assert loss.dirty.value == pytest.approx((2 + 4 + 5) / (1 + 1 + 2))
    table = contamination_scores.table(found, [exact, loss])
    row = next(line.split() for line in table.splitlines() if "exact match" in line)
    assert " ".join(row[3:]) == "0 8 5 50.00 18.90 20.00 20.00 100.00 0.00 -60.00 15.00 – – – –"
    assert table.splitlines()[3].split()[2:5] == ["K", "items", "clean"]
    data = contamination_scores.as_data(found, [exact])
    assert json.loads(json.dumps(data))["scores"][0]["relative_percent"] == exact.relative


def test_the_error_of_the_difference_is_that_of_drawing_items() -> None:
    """Scatter of clean against all over many draws of items, with as many dirty ones in each."""
    rng = np.random.default_rng(0)
    relative, errors = [], []
    for _ in range(4000):
        clean, dirty = rng.random(300) < 0.5, rng.random(100) < 0.7
        parts = []
        for of in (np.append(clean, dirty), clean, dirty):
            share, n = float(of.mean()), len(of)
            parts.append(contamination_scores.Part(share, math.sqrt(share * (1 - share) / (n - 1)), n))
        each = contamination_scores.Scores("m", "t", "accuracy", "0", *parts)
        assert each.relative is not None
        assert each.relative_stderr is not None
        relative.append(each.relative)
        errors.append(each.relative_stderr)
    assert statistics.stdev(relative) == pytest.approx(statistics.fmean(errors), rel=0.1)


def test_results_of_other_items_are_refused(tmp_path: Path) -> None:
    found, results = evaluated(tmp_path, fingerprint="another")
    with pytest.raises(UserError, match=r"task task: item '0' of .* is not the item that was looked for"):
        contamination_scores.scores(found, str(results))
    found, results = evaluated(tmp_path, task="other")
    with pytest.raises(UserError, match="holds none of the tasks task"):
        contamination_scores.scores(found, str(results))
    found, results = evaluated(tmp_path, scores=3)
    with pytest.raises(RunError, match="is damaged"):
        contamination_scores.scores(found, str(results))


def test_table_c1_is_whole() -> None:
    rows = table_c1.table_c1()
    assert len(rows) == 42
    for row in rows:
        assert row.dirty_count + row.clean_count == row.all_count
        assert round(100 * row.clean_count / row.all_count) == pytest.approx(row.clean_percent, abs=0.5)
        assert 8 <= row.n <= 13 or row.task in {
            "Symbol Insertion", "Anagrams 1", "Anagrams 2", "Reversed Words", "Cycled Letters"
        }  # fmt: skip
        if row.dirty is None:
            assert row.dirty_count == 0
        elif not row.metric.startswith("BLEU"):  # which is no mean over examples
            mean = (row.dirty * row.dirty_count + row.clean * row.clean_count) / row.all_count
            assert mean == pytest.approx(row.all, abs=0.11)
        misprinted = {"Quac": 2.5, "DROP": 2.5}
        assert 100 * (row.clean / row.all - 1) == pytest.approx(row.relative_percent, abs=misprinted.get(row.task, 1.0))
    from gpt3_jax.evals.table_h1 import table_h1

    named = {row.task for row in table_h1()}
    assert {row.task for row in rows} - named == {"LAMBADA (No Blanks)"}


def run(*arguments: str) -> int:
    return command_line.main(["contamination", *arguments])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, results = evaluated(tmp_path)
    arguments = [str(tmp_path / "text.jsonl"), "--tasks", str(tmp_path / "task.jsonl"), "--workers", "1"]
    out = tmp_path / "out"
    assert run(*arguments, "--results", str(results), "--out", str(out)) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[1].split()[:5] == ["task", "13", "8", "3", "62.5"]
    assert "most memory" in table
    names = {path.name for path in out.iterdir()}
    assert {"contamination.json", "contamination.jsonl", "hits.npz"} <= names
    assert names <= {"contamination.json", "contamination.jsonl", "hits.npz", "contamination.png"}
    lines = [json.loads(line) for line in (out / "contamination.jsonl").read_text().splitlines()]
    assert [line["dirty"] for line in lines] == [number in DIRTY for number in range(8)]
    assert lines[2]["places"][0]["document"].endswith("text.jsonl, line 2")
    assert run(*arguments, "--json", "--out", str(out)) == 0
    captured = capsys.readouterr()
    assert "is known from an earlier run" in captured.err
    assert json.loads(captured.out)["tasks"][0]["dirty"] == 3
    assert run(*arguments, "--out", str(out)) == 0
    (took,) = (line for line in capsys.readouterr().out.splitlines() if " documents, " in line)
    assert took.endswith("MB of text, read by an earlier run")
    assert found.tasks[0].dirty == 3


def test_the_papers_scores_stand_beside_few_shot_only(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("orange\nbanana\ncherry\ngrapes\nelephant\nmountain\n")
    (tmp_path / "text.txt").write_text("egnaro, Orange!")
    found = study(loaded("reversed_words", words=tmp_path / "words.txt"), Corpus([str(tmp_path / "text.txt")]))
    part = contamination_scores.Part(50.0, 1.0, 6)
    for shots, beside in {"0": False, "1": False, "10": False, "100": True, "max": True}.items():
        scores = [contamination_scores.Scores("m", "reversed_words", "accuracy", shots, part, part, part)]
        *_, row = (
            line.split() for line in contamination_scores.table(found, scores).splitlines() if "accuracy" in line
        )
        assert (row[-4:] == ["–"] * 4) != beside


def test_a_task_of_which_nothing_was_compared_is_not_called_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], said: list[str]
) -> None:
    write(tmp_path, [("a context of some words in which nothing happens", " yes")] * 3, ["a text"])
    (tmp_path / "short.jsonl").write_text('{"context": "two", "completion": " words"}\n')
    arguments = [str(tmp_path / "text.jsonl"), "--workers", "1", "--out", str(tmp_path / "out"), "--tasks"]
    assert run(*arguments, f"{tmp_path / 'task.jsonl'},{tmp_path / 'short.jsonl'}") == 0
    assert capsys.readouterr().out.splitlines()[2].split()[:6] == ["short", "8", "1", "–", "–", "1"]
    assert "short: no item has N = 8 words; nothing of it was compared" in said
    before = (tmp_path / "out" / "contamination.json").read_bytes()
    assert run(*arguments, str(tmp_path / "task.jsonl"), "--n", "500") == 2
    assert "no item has N = 500 words (the longest has 10), so nothing can be compared" in capsys.readouterr().err
    assert (tmp_path / "out" / "contamination.json").read_bytes() == before


def test_two_commands_do_not_write_into_one_folder(tmp_path: Path) -> None:
    busy = pytest.raises(UserError, match="is in use by another command")
    with written.alone_in(tmp_path), busy, written.alone_in(tmp_path):
        pass
    with written.alone_in(tmp_path), written.alone_in(None) as none:
        assert none is None


def test_an_interrupted_command_says_what_is_kept(said: list[str]) -> None:
    for out, message in (
        ("there", "there keeps all; the same command goes on"),
        (None, "nothing is kept without --out"),
    ):
        with pytest.raises(KeyboardInterrupt), written.said_when_interrupted("all", out):
            raise KeyboardInterrupt
        assert message in said[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.txt"], "no file matches nowhere.txt"),
        (["text.jsonl", "--tasks", "wrods"], "unknown task 'wrods'; the nearest is words"),
        (["text.jsonl", "--tasks", "task.jsonl", "--results", "nowhere"], "nowhere has no items.jsonl"),
        (["text.jsonl", "--tasks", "task.jsonl", "--n", "0"], "--n is 0; expected at least 1"),
        (["text.jsonl", "--tasks", "task.jsonl", "--ignore-above", "0"], "--ignore-above is 0; expected at least 1"),
        (["text.jsonl", "--tasks", "task.jsonl", "--workers", "0"], "--workers is 0; expected at least 1"),
        (["text.jsonl", "--tasks", "task.jsonl", "--text-key", "body"], "no key 'body'"),
        (["text.jsonl", "--tasks", "task.jsonl", "--out", "text.jsonl"], "cannot make the folder text.jsonl"),
        (["text.jsonl", "--tasks", "./text.jsonl"], "line 1"),
        (["text.jsonl", "--tasks", "task.jsonl", "--limit", "0"], "limit is 0"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write(tmp_path, [("a context of some words in which nothing happens", " yes")] * 3, ["a text"])
    monkeypatch.chdir(tmp_path)
    code = run(*arguments)
    captured = capsys.readouterr()
    assert code in (1, 2)
    assert captured.out == ""
    assert message in captured.err.splitlines()[-1]
    assert "Traceback" not in captured.err
    assert not list(tmp_path.rglob("*.partial"))
