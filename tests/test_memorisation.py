"""Memorisation: a model that was over-trained on a passage is caught, one on a passage that it never saw is not."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tiny_run import finish, start, tiny

from gpt3_jax.cli import main as command_line
from gpt3_jax.config import Config
from gpt3_jax.data.documents import Options
from gpt3_jax.data.tokenize import tokenize
from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.errors import UserError
from gpt3_jax.evals.evaluation import evaluate
from gpt3_jax.evals.loading import load
from gpt3_jax.generation import generate
from gpt3_jax.ngrams.corpus import Corpus
from gpt3_jax.ngrams.draw import draw
from gpt3_jax.reports import memorisation, reproduction
from gpt3_jax.reports.memorisation import Sample, read_samples

SYLLABLES = ["ba", "ke", "li", "mo", "nu", "pra", "ste", "vi", "zor", "wen"]
COPIES = 40


def passage(seed: int, words: int = 24) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(words)) + "."


PLANTED, UNSEEN = passage(1), passage(2)


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def overtrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its training text in which one passage stands forty times and thirty others once, and the
    passages in files."""
    folder = tmp_path_factory.mktemp("overtrained")
    texts = [PLANTED] * COPIES + [passage(n) for n in range(100, 130)]
    random.Random(0).shuffle(texts)
    write(folder / "train.jsonl", texts)
    write(folder / "planted.jsonl", [PLANTED])
    write(folder / "unseen.jsonl", [UNSEEN])
    tokenize([str(folder / "train.jsonl")], folder / "train", "bytes", shard_tokens=1000)
    tokenize([str(folder / "unseen.jsonl")], folder / "heldout", "bytes")
    config: Config = tiny(
        folder,
        folder / "run",
        model={
            "n_layers": 2,
            "attention_pattern": ["dense"],
            "d_model": 64,
            "n_heads": 4,
            "n_ctx": 64,
            "init_std": 0.06,
            "position_init_std": 0.03,
        },
        optimizer={"peak_lr": 5e-3, "warmup_tokens": 5000, "decay_tokens": 220_000},
        train={"tokens": 245_760, "batch_tokens": 512, "eval_tokens": 245_760, "eval_sequences": 2},
        memory={"loss_chunk": 64},
        checkpoint={"every_tokens": 245_760},
    )
    code, _, err = finish(start(config, folder / "config.yaml"))
    assert code == 0, err
    return folder


def continued(folder: Path, passages: str, **more: Any) -> reproduction.Study:
    source = Corpus([str(folder / passages)])
    return reproduction.study(load(folder / "run"), Corpus([str(folder / "train")]), source, 24, 24, **more)


def test_a_passage_that_was_trained_on_too_often_is_reproduced_and_an_unseen_one_is_not(overtrained: Path) -> None:
    planted = continued(overtrained, "planted.jsonl", count=12)
    assert {each.times for each in planted.continued} == {COPIES}
    [only] = planted.bins()
    assert (only.least, only.most, only.passages) == (32, 63, 12)
    assert only.share > 0.25, reproduction.table(planted)
    unseen = continued(overtrained, "unseen.jsonl", count=12)
    assert {each.times for each in unseen.continued} == {0}
    assert [each.reproduced for each in unseen.bins()] == [0]
    # Passages drawn from the training text itself fall into both.
    mixed = {each.least: each for each in continued(overtrained, "train", count=60).bins()}
    assert set(mixed) == {1, 32}
    assert mixed[32].share > mixed[1].share


def test_samples_of_the_model_hold_the_planted_passage(
    overtrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["memorisation", str(overtrained / "train"), "--workers", "1", "--model", str(overtrained / "run")]
    generated = [*arguments, "--count", "12", "--max-tokens", "60", "--least", "4", "--json"]
    assert command_line.main([*generated, "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    longest = [each["longest"] for each in found["samples"] if each["longest"]]
    assert max(each["times"] for each in longest if each["words"] >= 6) == COPIES
    of_planted = next(each for each in longest if each["times"] == COPIES)
    assert of_planted["text"] in PLANTED
    names = {path.name for path in (tmp_path / "out").iterdir()} - {"memorisation.png"}
    assert names == {"memorisation.json", "memorisation.jsonl", "answers.jsonl"}
    written = generate(overtrained / "run", "", max_tokens=60, samples=12)
    kept = [json.loads(line)["answer"]["text"] for line in (tmp_path / "out" / "answers.jsonl").open()]
    assert sorted(kept) == sorted(written)
    # The same samples against a text that the model never saw.
    arguments[1] = str(overtrained / "unseen.jsonl")
    assert command_line.main([*arguments, "--count", "12", "--max-tokens", "60", "--json"]) == 0
    assert not any(each["longest"] for each in json.loads(capsys.readouterr().out)["samples"])


def test_a_contaminated_document_is_dirty_and_scored_apart(
    overtrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From `evaluate` to the table: the loss of the text that was trained on is the lower one."""
    task = f"text:{write(tmp_path / 'held.jsonl', [UNSEEN, PLANTED, passage(3), passage(4)])}"
    evaluate(overtrained / "run", task, shots=(0,), out=tmp_path / "results")
    arguments = ["contamination", str(overtrained / "train"), "--tasks", task, "--workers", "1", "--json"]
    assert command_line.main([*arguments, "--results", str(tmp_path / "results")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tasks"][0]["dirty"], found["tasks"][0]["clean"]) == (1, 3)
    loss = next(each for each in found["scores"] if each["metric"] == "loss per token")
    assert loss["dirty"]["value"] < loss["all"]["value"] < loss["clean"]["value"]
    assert (loss["dirty"]["items"], loss["clean"]["items"]) == (1, 3)


def test_the_command_takes_kept_answers_again(
    overtrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["memorisation", str(overtrained / "train"), "--model", str(overtrained / "run"), "--prefix", "24"]
    arguments += ["--continuation", "24", "--passages", str(overtrained / "planted.jsonl"), "--count", "4"]
    arguments += ["--workers", "1", "--out", str(tmp_path / "out")]
    assert command_line.main(arguments) == 0
    first = capsys.readouterr()
    assert "32 to 63" in first.out
    names = {path.name for path in (tmp_path / "out").iterdir()} - {"reproduction.png"}
    assert names == {"reproduction.json", "reproduction.jsonl", "answers.jsonl"}
    assert command_line.main(arguments) == 0
    again = capsys.readouterr()
    assert "0 requests" in again.err
    assert again.out.splitlines()[:2] == first.out.splitlines()[:2]


def test_a_match_in_words_and_as_it_is_written(tmp_path: Path) -> None:
    text = 'He said: "It was the best of times, it was the WORST of times" — and left.'
    corpus = Corpus([str(write(tmp_path / "a.jsonl", ["Nothing here.", text, f"Twice: {text}"]))])
    sample = "Indeed it was the best of times, it was the worst of times and left us."
    found = memorisation.study([Sample("one", sample), Sample("two", "no match")], corpus, 3, 2, ByteTokenizer())
    one, two = found.found
    assert one.longest is not None
    assert one.longest.text == "it was the best of times, it was the worst of times and left"
    assert (one.longest.words, one.longest.times, one.longest.word) == (14, 2, 1)
    assert [(each.document[-6:], each.character, each.times) for each in one.longest.places] == [
        ("line 2", text.index("It"), 1),
        ("line 3", text.index("It") + 7, 1),
    ]
    assert one.verbatim is not None
    assert one.verbatim.text == "was the best of times, it was the"
    assert (one.verbatim.words, one.verbatim.tokens, one.verbatim.times) == (8, 33, 2)
    assert [each.document[-6:] for each in one.neighbours] == ["line 2", "line 3"]
    # Sixteen words have fourteen 3-grams, of which "it was the" comes twice; of the thirteen, that with Indeed and that
    # with us are not in the text.
    assert one.neighbours[0].containment == one.neighbours[1].containment == 11 / 13
    assert (two.longest, two.verbatim, two.neighbours) == (None, None, ())
    table = memorisation.table(found)
    assert "1 of 2 samples share 3 words in a row" in table


def test_samples_are_read_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"a text"\n\n{"text": "another"}\n')
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'"a text"\n{"text": "another"}\n'))
    (tmp_path / "a.txt").write_text("a text###another###  ")
    for name, split in (("a.jsonl", ""), ("a.jsonl.gz", ""), ("a.txt", "###")):
        assert [each.text for each in read_samples(str(tmp_path / name), split)] == ["a text", "another"]
    assert read_samples(str(tmp_path / "a.jsonl"))[1].name.endswith("a.jsonl, line 3")
    assert [each.text for each in read_samples(str(tmp_path / "a.txt"))] == ["a text###another###  "]


def test_passages_are_drawn_evenly_and_within_a_document(tmp_path: Path) -> None:
    texts = ["short", " ".join(f"w{n}" for n in range(400)), " ".join(f"é{n}" for n in range(200))]
    write(tmp_path / "a.jsonl", texts)
    tokenize([str(tmp_path / "a.jsonl")], tmp_path / "sh", "bytes", shard_tokens=100)
    for path in ("a.jsonl", "sh"):
        found = draw(Corpus([str(tmp_path / path)]), ByteTokenizer(), 20, 10, 200, 3)
        assert found == draw(Corpus([str(tmp_path / path)]), ByteTokenizer(), 20, 10, 200, 3)
        of = [[each for each in found if each.where.endswith(f" {n + (path != 'sh')}")] for n in range(3)]
        assert not of[0]
        assert len(of[1]) + len(of[2]) == 200
        share = len(texts[1]) / sum(len(text) for text in texts)
        if path == "sh":
            share = len(texts[1].encode()) / sum(len(text.encode()) for text in texts)
        assert abs(len(of[1]) / 200 - share) < 0.15
        for number, members in enumerate(of):
            for each in members:
                assert each.prefix + each.continuation in texts[number]
                assert len(each.tokens) == 10
                if each.character is not None:
                    assert texts[number][each.character :].startswith(each.prefix)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give samples by --samples FILE or a model by --model RUN"),
        (["--samples", "s.jsonl", "--model", "run"], "one of the two"),
        (["--samples", "s.jsonl", "--prefix", "5"], "--prefix needs a model"),
        (["--samples", "s.jsonl", "--passages", "a.jsonl"], "--passages is for --prefix"),
        (["--samples", "nowhere.jsonl"], "nowhere.jsonl is not there"),
        (["--samples", "broken.jsonl"], "broken.jsonl, line 2 is not JSON"),
        (["--samples", "number.jsonl"], "number.jsonl, line 1 holds no text: 3"),
        (["--samples", "key.jsonl"], "key.jsonl, line 1: 'text' is missing"),
        (["--samples", "empty.txt"], "empty.txt holds no sample"),
        (["--samples", "s.jsonl", "--least", "1"], "the shortest match is 1 words; expected at least 2"),
        (["--samples", "s.jsonl", "--neighbours", "-1"], "neighbours is -1; expected 0"),
        (["--samples", "s.jsonl", "--tokenizer", "nothing"], "tokenizer 'nothing' is neither"),
        (["--model", "nowhere", "--prefix", "5"], "nowhere"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write(tmp_path / "a.jsonl", ["a text"])
    write(tmp_path / "s.jsonl", ["a sample"])
    for name, text in {
        "broken.jsonl": '"a"\n{"text"', "number.jsonl": "3", "key.jsonl": '{"t": "a"}', "empty.txt": " \n"
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    code = command_line.main(["memorisation", "a.jsonl", "--workers", "1", *arguments])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert message in captured.err.splitlines()[-1]


def test_passages_that_do_not_fit_are_refused(overtrained: Path) -> None:
    with pytest.raises(UserError, match=r"40 \+ 25 tokens; the context of .* holds 64"):
        corpus = Corpus([str(overtrained / "train")])
        reproduction.study(load(overtrained / "run"), corpus, corpus, 40, 25)
    with pytest.raises(UserError, match="0 of 3 passages of 400"):
        draw(Corpus([str(overtrained / "train.jsonl")], Options()), ByteTokenizer(), 400, 20, 3, 0)
