"""Evaluations from end to end, with a model whose answers are known."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import re
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from exact_model import CONFIG, LOGPROB, ExactModel, subject

from gpt3_jax.config import ModelConfig
from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.evals import evaluation, written
from gpt3_jax.evals import subject as evals_subject
from gpt3_jax.evals.evaluation import ITEMS, evaluate_subjects, load_tasks
from gpt3_jax.evals.kept import FILE
from gpt3_jax.evals.protocol import Shots
from gpt3_jax.evals.requests import Answer, Request, TextScore, Window
from gpt3_jax.evals.results import RESULTS, Results
from gpt3_jax.evals.run import TaskItems
from gpt3_jax.evals.subject import Subject
from gpt3_jax.evals.tasks.select import select

TASK = "two_digit_addition"


def even(a: int, b: int) -> bool:
    return a % 2 == 0


def run(
    model: ExactModel,
    out: Path | None = None,
    shots: Sequence[Shots | None] = (0, 2),
    limit: int = 30,
    seeds: int = 2,
    **of_subject: Any,
) -> Results:
    return evaluate_subjects([subject(model, **of_subject)], load_tasks(select([TASK]), limit=limit), shots, seeds, out)


def error_of(do: Callable[[], object]) -> str:
    """What the error says that it ends with; nothing if it ends well."""
    try:
        do()
    except (RunError, UserError) as error:
        return str(error)
    return ""


def test_results_say_what_the_model_answered(tmp_path: Path) -> None:
    results = run(ExactModel(even), tmp_path)
    records = [json.loads(line) for line in (tmp_path / ITEMS).read_text().splitlines()]
    assert len(records) == 30 + 2 * 30, "without demonstrations there is one seed"
    right = 0
    for record in records:
        words = record["prompts"][0].split()
        a, b = int(words[-4]), int(words[-2].rstrip("?"))
        assert record["expected"] == [str(a + b)] and record["generated"] == (f" {a + b}" if even(a, b) else " no idea")
        assert record["scores"] == {"exact match": float(even(a, b))}
        assert record["item"] not in record["demonstrations"] and len(record["demonstrations"]) == record["shots"]
        right += record["shots"] == 0 and even(a, b)
    for cell in results.cells:
        assert cell.value == pytest.approx(100 * right / 30) and cell.items == 30
        assert cell.stderr == pytest.approx(100 * math.sqrt(right / 30 * (1 - right / 30) / 29))
    assert [(cell.shots, cell.seeds) for cell in results.cells] == [(0, (0,)), (2, (0, 1))]

    data = json.loads((tmp_path / RESULTS).read_text())
    assert data == json.loads(results.to_json())
    assert data["models"][0]["weights"] == "w" and data["models"][0]["tokenizer"]["name"] == "bytes"
    how = data["tasks"][TASK]
    assert how["scoring"]["rule"] == "Generated" and how["scoring"]["width"] == 4 and how["evaluated"] == 30
    assert how["open"]["stop"]["value"] == "\n" and "does not say" in how["open"]["stop"]["why"]


def test_the_papers_value_is_that_of_the_same_shape_and_k() -> None:
    small = ModelConfig(n_vocab=257, n_layers=12, d_model=768, n_heads=12)
    results = run(ExactModel(), shots=[0, 1, 2, None], limit=3, config=small)
    assert [(cell.shots, cell.paper) for cell in results.cells] == [(0, 0.70), (1, 2.00), (2, None), (50, 2.00)]
    other = run(ExactModel(), shots=[0], limit=3, config=ModelConfig(n_vocab=257, n_layers=2, d_model=64, n_heads=2))
    assert other.cells[0].paper is None
    assert "0.70" in results.table() and "0.70" not in other.table()


@pytest.mark.parametrize("stop_with", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    tmp_path: Path, stop_with: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gpt3_jax")
    whole = run(ExactModel(even), tmp_path / "whole")
    first = ExactModel(even, stop_after=17, stop_with=stop_with)
    with pytest.raises(stop_with):
        run(first, tmp_path / "again")
    assert not (tmp_path / "again" / RESULTS).exists()
    assert re.search(r"17 answers are kept in .*answers\.jsonl; the same command goes on from there", caplog.text)
    second = ExactModel(even)
    assert run(second, tmp_path / "again").cells == whole.cells
    assert len(first.asked) == 17 and not set(first.asked) & set(second.asked)
    third = ExactModel(even)
    run(third, tmp_path / "again")
    assert not third.asked
    for name in (ITEMS,):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_answers_are_kept_for_their_weights_tokenizer_and_settings(tmp_path: Path) -> None:
    run(ExactModel(), tmp_path)
    other = ExactModel(even)
    results = run(other, tmp_path, weights="others")
    assert other.asked and results.cells[0].value < 100
    longer = ExactModel()
    run(longer, tmp_path, config=ModelConfig(n_vocab=257, n_ctx=1024))
    assert longer.asked, "the model's configuration changed"


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
@pytest.mark.parametrize("kind", ["Score", "TextScore", "Completed"])
def test_a_likelihood_that_is_no_number_ends_the_evaluation_and_is_not_kept(bad: float, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tmp_path = Path(folder)

        class Broken(ExactModel):
            def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
                for count, (index, answer) in enumerate(super().__call__(requests)):
                    yield index, dataclasses.replace(answer, logprob=bad) if count == 1 else answer

        (tmp_path / "b.jsonl").write_text('{"text": "a b"}\n{"text": "c d"}\n{"text": "e f"}\n')
        row = {"stem": ["a", "b"], "choices": [["c", "d"], ["e", "f"]], "answer": 1}
        (tmp_path / "sat.jsonl").write_text("".join(json.dumps(row | {"stem": ["a", n]}) + "\n" for n in "xy"))
        name, item = {
            "Score": (f"analogies:{tmp_path / 'sat.jsonl'}", "1"),
            "TextScore": (f"text:{tmp_path / 'b.jsonl'}", "1"),
            "Completed": (TASK, "1"),
        }[kind]
        loaded = load_tasks(select([name]), limit=3)
        said = error_of(lambda: evaluate_subjects([subject(Broken())], loaded, [0], 1, tmp_path / "out"))
        assert said.startswith(f"exact: task {loaded[0].task.name}, item {item}: the log-likelihood is {bad}"), said
        assert (tmp_path / "out" / FILE).read_text().count("\n") == 1, "the answer before it"
        again = ExactModel()
        evaluate_subjects([subject(again)], loaded, [0], 1, tmp_path / "out")
        assert len(again.asked) == sum(len(each.choices) or 1 for each in loaded[0].evaluated) - 1


def test_answers_of_an_earlier_version_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(ExactModel(), tmp_path)
    monkeypatch.setattr(evals_subject, "ANSWERS", evals_subject.ANSWERS + 1)
    newer = ExactModel()
    run(newer, tmp_path)
    assert newer.asked
    meshed = ExactModel()
    one = dataclasses.replace(subject(meshed), computed={"stage": 3})
    results = evaluate_subjects([one], load_tasks(select([TASK]), limit=30), (0, 2), 2, tmp_path)
    assert not meshed.asked, "what changes answers by rounding only is in the results alone"
    assert results.models[0]["engine"] == {"dtype": "exact", "stage": 3}


def test_equal_requests_are_asked_once() -> None:
    model = ExactModel()
    run(model, shots=[0, 0], seeds=5)
    assert len(model.asked) == len(set(model.asked)) == 30


def test_a_model_is_freed_before_the_next_is_loaded(tmp_path: Path) -> None:
    loaded: list[weakref.ref[ExactModel]] = []

    def subjects() -> Iterator[Subject]:
        for _ in range(3):  # of one name, so that the second is renamed
            assert all(model() is None for model in loaded)
            model = ExactModel()
            loaded.append(weakref.ref(model))
            one = [subject(model)]
            del model
            yield one.pop()

    results = evaluate_subjects(subjects(), load_tasks(select([TASK]), limit=3), [0], 1, tmp_path)
    assert len(loaded) == len(results.models) == 3


def test_several_models_stand_beside_each_other(tmp_path: Path) -> None:
    both = [subject(ExactModel(), "run"), subject(ExactModel(even), "run", weights="v")]
    results = evaluate_subjects(both, load_tasks(select([TASK]), limit=9), [0], 1, tmp_path)
    assert [cell.model for cell in results.cells] == ["run", "run (2)"]
    assert results.cells[0].value == 100 > results.cells[1].value
    assert results.table().splitlines()[1].split()[0] == "run"


def test_a_second_evaluation_into_a_folder_in_use_changes_nothing() -> None:
    """It is tried while the first is within each of its models, and between them."""
    with tempfile.TemporaryDirectory() as folder:
        tmp_path = Path(folder)
        alone = [subject(ExactModel(even), "a"), subject(ExactModel(), "b", weights="v")]
        loaded = load_tasks(select([TASK]), limit=9)
        evaluate_subjects(alone, loaded, [0, 1], 1, tmp_path / "alone")

        def intrude() -> None:
            said = error_of(lambda: run(ExactModel(), tmp_path / "used", limit=2))
            assert "is in use by another command; wait, or choose another --out" in said

        class Interrupted(ExactModel):
            def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
                for each in super().__call__(requests):
                    intrude()
                    yield each

        def subjects() -> Iterator[Subject]:
            for each, model in zip(alone, (Interrupted(even), Interrupted()), strict=True):
                intrude()
                yield dataclasses.replace(each, answer=model)
            intrude()

        evaluate_subjects(subjects(), loaded, [0, 1], 1, tmp_path / "used")
        assert (tmp_path / "used" / ITEMS).read_bytes() == (tmp_path / "alone" / ITEMS).read_bytes()
        assert sorted(path.name for path in (tmp_path / "used").iterdir()) == sorted(
            path.name for path in (tmp_path / "alone").iterdir()
        )


def test_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    # A question takes 33 to 35 bytes with its frame, 16 more are to be generated.
    file = tmp_path / "two_digit_addition.jsonl"
    rows = [
        {"context": f"\n\nQ: What is {a} plus 1?\n\nA:", "completion": f" {a + 1}"} for a in (1, 12, 3333, 44444444)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_tasks(select([str(file)]))

    def at(n_ctx: int) -> Results:
        return evaluate_subjects([subject(ExactModel(), config=ModelConfig(n_vocab=257, n_ctx=n_ctx))], loaded, [0, 1])

    def at_zero(n_ctx: int) -> Results:
        return evaluate_subjects([subject(ExactModel(), config=ModelConfig(n_vocab=257, n_ctx=n_ctx))], loaded, [0])

    zero, one = at(48).cells
    assert (zero.items, zero.left_out) == (3, 1) and zero.value == 100
    assert (one.prompts_with_fewer, one.shots_mean) == (3, 0)
    text = at(48).table()
    assert "two_digit_addition, K = 0: 1 items left out: too long for the model's context" in text
    assert "K = 1: 3 prompts with fewer demonstrations, which did not fit; 0.0 on average" in text
    with pytest.raises(UserError, match="none of its 4 items fits into the context of 20 tokens of exact; the short"):
        at(20)
    other = tmp_path / "sum.jsonl"
    other.write_text(json.dumps({"context": "\n\nQ: What is 1 plus 1?\n\nA:", "completion": " 2"}) + "\n")
    loaded += load_tasks(select([str(other)], ["max_tokens=4"]))
    assert {cell.task for cell in at_zero(32).cells} == {"sum"}, "beside others it is left out with a line"


def test_examples_that_there_are_not_are_counted_apart_from_those_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "two_digit_addition.jsonl"
    rows = [{"context": f"\n\nQ: What is {a} plus 1?\n\nA:", "completion": f" {a + 1}"} for a in (1, 1, 1, 2)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = evaluate_subjects([subject(ExactModel())], load_tasks(select([str(file)])), [0, 2], 1)
    zero, two = results.cells
    assert (zero.prompts_lacking, two.prompts_with_fewer, two.prompts_lacking) == (0, 0, 3)
    assert (
        "K = 2: 3 prompts with fewer demonstrations, because no other example was left to draw; 1.2"
        in (results.table())
        and "did not fit" not in results.table()
    )


def test_answers_that_no_completion_can_be_are_said(tmp_path: Path, said: list[str]) -> None:
    file = tmp_path / "own.jsonl"
    answers = (" short", " two\nlines", " " + "long " * 20)
    context = "What is 1 plus 1?\n\nA:"
    file.write_text("".join(json.dumps({"context": context, "completion": answer}) + "\n" for answer in answers))
    evaluate_subjects([subject(ExactModel())], load_tasks(select([str(file)])), [0])
    assert any(
        "task own: 2 of 3 items cannot be answered: their answers contain the stop string" in line for line in said
    )
    said.clear()
    evaluate_subjects([subject(ExactModel())], load_tasks(select([TASK]), limit=3), [0])
    assert not any("cannot be answered" in line for line in said)


def test_a_text_is_measured_per_token_word_and_byte(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("two wörds\nand more", encoding="utf-8")
    loaded = load_tasks(select([f"text:{book}"], ["stride=7"]))
    model = ExactModel()
    results = evaluate_subjects([subject(model)], loaded, [0, 1, "max"], 3)
    loss, words, bits = results.cells
    assert {cell.metric: cell.shots for cell in results.cells} == dict.fromkeys(
        ["loss per token", "perplexity per word", "bits per byte"], 0
    )
    assert loss.value == pytest.approx(-LOGPROB) and bits.value == pytest.approx(8)
    assert words.value == pytest.approx(math.exp(-LOGPROB * 19 / 4))
    assert [len(each.continuation) for each in model.asked if isinstance(each, Window)] == [19]
    assert loss.stderr is None and "–" in results.table()


def test_results_that_hold_more_are_moved_out_of_the_way(tmp_path: Path) -> None:
    run(ExactModel(), tmp_path, limit=30)
    before = {name: (tmp_path / name).read_bytes() for name in (RESULTS, ITEMS)}
    second = ExactModel()
    run(second, tmp_path, limit=5)
    assert not second.asked, "answers are kept for both"
    assert {name: (tmp_path / "earlier-1" / name).read_bytes() for name in before} == before
    assert json.loads((tmp_path / RESULTS).read_text())["cells"][0]["items"] == 5
    run(ExactModel(), tmp_path, limit=5, shots=(0,))  # K = 2 is not evaluated
    assert sorted(path.name for path in tmp_path.glob("earlier-*")) == ["earlier-1", "earlier-2"]
    run(ExactModel(), tmp_path, limit=30)
    assert sorted(path.name for path in tmp_path.glob("earlier-*")) == ["earlier-1", "earlier-2"], "replaced by more"
    assert (tmp_path / RESULTS).exists() and (tmp_path / ITEMS).exists()


@pytest.mark.parametrize("what", ["fewer seeds", "other weights", "int8", "other items", "the same"])
def test_results_of_something_else_are_moved_out_of_the_way(what: str, tmp_path: Path) -> None:
    def evaluated(seeds: int = 2, weights: str = "w", first: int = 0, int8: bool = False) -> None:
        (loaded,) = load_tasks(select([TASK]), limit=30)
        loaded = dataclasses.replace(loaded, evaluated=loaded.evaluated[first : first + 5])
        found = dataclasses.replace(
            subject(ExactModel(), weights=weights), settings={"weights": "int8"} if int8 else {}
        )
        evaluate_subjects([found], [loaded], (0, 2), seeds, tmp_path)

    evaluated()
    before = {name: (tmp_path / name).read_bytes() for name in (RESULTS, ITEMS)}
    if what == "fewer seeds":
        evaluated(seeds=1)
    elif what == "int8":  # of the same checkpoint
        evaluated(int8=True)
    else:
        evaluated(weights="later" if what == "other weights" else "w", first=5 if what == "other items" else 0)
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("earlier-1/*")}
    assert kept == ({} if what == "the same" else before)


@pytest.mark.parametrize("text", ['{"cells": [', '{"format": "gpt3_jax evaluation", "cells": [{"items": 5}]}', "[]"])
def test_results_that_cannot_be_read_are_moved_out_of_the_way(text: str, tmp_path: Path, said: list[str]) -> None:
    (tmp_path / RESULTS).write_text(text)
    run(ExactModel(), tmp_path, limit=5)
    assert (tmp_path / "earlier-1" / RESULTS).read_text() == text
    assert any(f"{RESULTS} is damaged or of another version" in line for line in said)


@pytest.mark.parametrize("links", [True, False])
def test_results_stay_whole_where_they_cannot_be_moved(links: bool, tmp_path: Path) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def full_at_the_second(path: Path, to: Path) -> None:
        if any(to.parent.iterdir()):
            raise OSError(errno.ENOSPC, "No space left on device")
        link(path, to)

    link = written._link
    run(ExactModel(), tmp_path, limit=30)
    before = {name: (tmp_path / name).read_bytes() for name in (RESULTS, ITEMS)}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(written, "_link", full_at_the_second)
        assert "earlier-1: No space left on device" in error_of(lambda: run(ExactModel(), tmp_path, limit=5))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name in before} == before
    assert not list(tmp_path.glob("earlier-*"))
    (tmp_path / "earlier-1.partial").mkdir()  # as a kill leaves it
    with pytest.MonkeyPatch.context() as patched:
        if not links:
            patched.setattr(Path, "hardlink_to", no_links)
        run(ExactModel(), tmp_path, limit=5)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("earlier-1/*")} == before
    assert [path.name for path in tmp_path.glob("earlier-*")] == ["earlier-1"]


def long_texts(folder: Path) -> list[TaskItems]:
    """Two texts of several windows each, with windows that are equal, and a short one."""
    file = folder / "texts.jsonl"
    texts = ["abcd " * 60, "wörd " * 25, "short"]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return load_tasks(select([f"text:{file}"]))


def of_texts(model: ExactModel, folder: Path, out: Path | None = None, n_ctx: int = 30) -> Results:
    config = dataclasses.replace(CONFIG, n_ctx=n_ctx)
    return evaluate_subjects([subject(model, config=config)], long_texts(folder), [0], out=out)


def test_a_long_text_is_asked_window_by_window(tmp_path: Path) -> None:
    model = ExactModel()
    results = of_texts(model, tmp_path)
    for found, whole in zip(results.cells, of_texts(ExactModel(), tmp_path, n_ctx=2048).cells, strict=True):
        assert found.value == pytest.approx(whole.value) and found.items == 3
    assert all(isinstance(each, Window) and len(each.continuation) <= 30 for each in model.asked)


def test_an_interrupted_text_goes_on_with_its_next_window(tmp_path: Path) -> None:
    whole = of_texts(ExactModel(), tmp_path)
    first, second = ExactModel(stop_after=4), ExactModel()
    with pytest.raises(KeyboardInterrupt):
        of_texts(first, tmp_path, tmp_path / "again")
    assert of_texts(second, tmp_path, tmp_path / "again").cells == whole.cells
    assert len(first.asked) == 4 and second.asked and not set(first.asked) & set(second.asked)


def test_each_text_is_tokenized_once_and_that_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    tokenized: list[str] = []
    encode = ByteTokenizer.encode

    def counted(self: ByteTokenizer, text: str) -> list[int]:
        assert any("tokenizing 3 texts" in line for line in said)
        tokenized.append(text)
        return encode(self, text)

    monkeypatch.setattr(ByteTokenizer, "encode", counted)
    of_texts(ExactModel(), tmp_path, tmp_path / "out")
    assert len(tokenized) == len(set(tokenized)) == 3
    assert any(line.endswith(" windows") for line in said)


def test_a_window_that_is_answered_otherwise_is_an_error(tmp_path: Path) -> None:
    class Wrong(ExactModel):
        def _answer(self, request: Request) -> Answer:
            return TextScore(-1.0, 1, 1, 1)

    with pytest.raises(TypeError, match="expected the score of a window"):
        of_texts(Wrong(), tmp_path)


def test_a_perplexity_without_bound_is_said_as_such(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("a" * 1000)
    results = evaluate_subjects([subject(ExactModel())], load_tasks(select([f"text:{tmp_path / 'long.txt'}"])), [0])
    assert results.cells[1].value == math.inf and " inf " in results.table()
    endless = dataclasses.replace(results.cells[1], stderr=math.inf, detectable=math.nan, shots_mean=math.inf)
    written = dataclasses.replace(results, cells=(endless,)).to_json()
    (cell,) = json.loads(written, parse_constant=lambda name: pytest.fail(name))["cells"]
    assert [cell[name] for name in ("value", "by_seed", "stderr", "detectable", "shots_mean")] == [
        None, [None], None, None, None,
    ]  # fmt: skip


def test_choices_have_a_chance_level(tmp_path: Path) -> None:
    file = tmp_path / "sat.jsonl"
    row = {"stem": ["a", "b"], "choices": [["c", "d"], ["ee", "f"], ["g", "h"], ["i", "j"]], "answer": 0}
    file.write_text("".join(json.dumps(row | {"stem": ["a", f"b{n}"]}) + "\n" for n in range(4)))
    results = evaluate_subjects(
        [subject(ExactModel())], load_tasks(select([f"analogies:{file}"])), [0, 2], 1, tmp_path / "out"
    )
    assert [cell.chance for cell in results.cells] == [25, 25]
    assert [cell.value for cell in results.cells] == [100, 100], "all choices are equal: the first is taken"
    record = json.loads((tmp_path / "out" / ITEMS).read_text().splitlines()[-1])
    assert record["compared"] == pytest.approx([LOGPROB] * 4) and record["chosen"] == 0
    assert record["choices"][1] == "ee is to f" and record["right"] == [0]


def test_the_users_folder_is_found_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ds" / "COPA").mkdir(parents=True)
    row = {"premise": "It fell.", "choice1": "It ran.", "choice2": "It sat.", "question": "cause", "label": 0}
    (tmp_path / "ds" / "COPA" / "val.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "words").write_text("stream\ncastle\n")
    given: list[TaskItems] = []

    def took(_: object, loaded: Sequence[TaskItems], *__: object) -> None:
        given.extend(loaded)

    monkeypatch.setattr(evaluation, "evaluate_subjects", took)
    evaluation.evaluate("a model", ["copa", "reversed_words"], data="~/ds", words="~/words")
    copa, words = (each.items.source for each in given)
    assert copa.startswith(str(tmp_path / "ds" / "COPA" / "val.jsonl")) and words.startswith(str(tmp_path / "words"))


def test_bad_numbers_are_refused() -> None:
    loaded = load_tasks(select([TASK]), limit=2)
    with pytest.raises(UserError, match="limit is 0"):
        load_tasks(select([TASK]), limit=0)
    with pytest.raises(UserError, match="seeds is 0"):
        evaluate_subjects([subject(ExactModel())], loaded, [0], 0)
    for k in (-1, "all", 1.5):
        with pytest.raises(UserError, match=re.escape(f"shots has {k!r}; expected numbers from 0")):
            evaluation.evaluate("nowhere", TASK, shots=[k])  # type: ignore[list-item]
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluation.evaluate_subjects([subject(ExactModel())], loaded, [])
