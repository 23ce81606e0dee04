"""Two evaluations item by item, and the pictures."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from exact_model import ExactModel, subject

from gpt3_jax.cli import main as front
from gpt3_jax.errors import UserError
from gpt3_jax.evals import picture
from gpt3_jax.evals.evaluation import ITEMS, evaluate_subjects, load_tasks
from gpt3_jax.evals.requests import Answer, Completed, Request
from gpt3_jax.evals.results import Results, by_task
from gpt3_jax.evals.tasks.select import select
from gpt3_jax.evals.tasks.task import Source
from gpt3_jax.reports import paired

TASK = "two_digit_addition"


def run(out: Path, knows: Callable[[int, int], bool], name: str = "m", limit: int = 40, seeds: int = 1) -> Results:
    loaded = load_tasks(select([TASK]), limit=limit)
    return evaluate_subjects([subject(ExactModel(knows), name, weights=name)], loaded, [1], seeds, out)


def error_of(do: Callable[[], object]) -> str:
    """What the error says that it ends with; nothing if it ends well."""
    try:
        do()
    except UserError as error:
        return str(error)
    return ""


def test_a_comparison_is_of_pairs(tmp_path: Path) -> None:
    run(tmp_path / "a", lambda a, b: a % 2 == 0, "a", seeds=2)
    run(tmp_path / "b", lambda a, b: b % 2 == 0, "b", limit=30)
    name_a, name_b, (found,) = paired.compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (name_a, name_b) == (f"a ({tmp_path / 'a'})", f"b ({tmp_path / 'b'})")
    assert (found.task, found.shots, found.items, found.only_one) == (TASK, "1", 30, 10)
    (task,) = select([TASK])
    contexts = [item.context for item in task.load(Source(), task.options).test[:30]]
    numbers = [[int(n) for n in re.findall(r"\d+", context)] for context in contexts]
    rights = [(a % 2 == 0, b % 2 == 0) for a, b in numbers]
    gains = [b - a for a, b in rights]
    assert found.difference == pytest.approx(100 * sum(gains) / 30)
    mean = sum(gains) / 30
    assert found.stderr == pytest.approx(100 * math.sqrt(sum((gain - mean) ** 2 for gain in gains) / 29 / 30))
    assert (found.a_better, found.b_better) == (gains.count(-1), gains.count(1))
    assert found.other_prompts == 30, "one of them had another seed too"


def test_a_model_compared_with_itself_does_not_differ(tmp_path: Path) -> None:
    for name in "ab":
        run(tmp_path / name, lambda a, b: a < b)
    _, _, (found,) = paired.compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (found.difference, found.stderr, found.p, found.other_prompts) == (0, 0, 1, 0)


def test_items_of_one_id_that_are_not_the_same_example_are_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tmp_path = Path(folder)
        for name, items in (("a", []), ("b", ["item_seed=1"])):
            loaded = load_tasks(select([TASK], items), limit=40)
            evaluate_subjects([subject(ExactModel(), name)], loaded, [1], 1, tmp_path / name)
        said = error_of(lambda: paired.compare(str(tmp_path / "a"), str(tmp_path / "b")))
        assert said.startswith(
            f"task {TASK}: 40 of 40 items are other examples for a than for b (the first: '0'); eval"
        )
        documents = tmp_path / "d.jsonl"
        for text in ("one", "two"):  # a text has no prompt that could differ
            documents.write_text(json.dumps({"text": text}) + "\n")
            loaded = load_tasks(select([f"text:{documents}"]))
            evaluate_subjects([subject(ExactModel(), text)], loaded, [0], 1, tmp_path / text)
        said = error_of(lambda: paired.compare(str(tmp_path / "one"), str(tmp_path / "two")))
        assert said.startswith("task text:d.jsonl: 1 of 1 items are other examples for one than for two"), said


def test_the_sign_test_is_exact() -> None:
    assert paired.sign_test(0, 0) == paired.sign_test(3, 3) == 1
    assert paired.sign_test(0, 5) == paired.sign_test(5, 0) == 2 / 32
    assert paired.sign_test(1, 9) == pytest.approx(2 * 11 / 1024)
    normal = math.erfc((400 - 1) / math.sqrt(2 * 8400))
    assert paired.sign_test(4000, 4400) == pytest.approx(normal, rel=0.01)


def test_texts_are_compared_by_the_ratio_of_sums(tmp_path: Path) -> None:
    documents = tmp_path / "d.jsonl"
    documents.write_text("".join(json.dumps({"text": "ab " * n}) + "\n" for n in (1, 5, 9)))
    loaded = load_tasks(select([f"text:{documents}"]))
    both = [subject(ExactModel(), "a"), subject(ExactModel(), "b", weights="v")]
    evaluate_subjects(both, loaded, [0], 1, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / ITEMS).read_text().splitlines()]
    for line in lines:
        if line["model"] == "b" and line["item"] != "0":
            line["scores"] = {metric: 0.5 * score for metric, score in line["scores"].items()}
    (tmp_path / ITEMS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, _, found = paired.compare(str(tmp_path), None)
    bits = next(each for each in found if each.metric == "bits per byte")
    # 3 bytes at 8 bits and 42 at 4.
    assert bits.a == pytest.approx(8) and bits.b == pytest.approx((3 * 8 + 42 * 4) / 45)
    assert (bits.a_better, bits.b_better) == (0, 2)
    gains = [0, -4 * 15, -4 * 27]
    rest = [(gain - sum(gains) / 45 * size) / 45 for gain, size in zip(gains, (3, 15, 27), strict=True)]
    assert bits.stderr == pytest.approx(math.sqrt(1.5 * sum(each**2 for each in rest)), rel=1e-4)


def test_translations_are_compared_by_the_bleu_of_all(tmp_path: Path) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    references = ["The red cat sat on a mat.", "It rains again and again.", "She bought three apples today."]
    texts = {
        "a": ["The red cat sat on the mat.", "It rains and rains again.", "She bought apples."],
        "b": ["The red cat sat on a mat.", "It rains again and again.", "Nobody bought three apples today."],
    }
    (tmp_path / "newstest2014.fr").write_text("Un.\nDeux.\nTrois.\n")
    (tmp_path / "newstest2014.en").write_text("".join(f"{each}\n" for each in references))
    loaded = load_tasks(select(["wmt14_fr_en"], data=str(tmp_path)), data=str(tmp_path))

    def generating(name: str) -> Callable[[Sequence[Request]], Iterator[tuple[int, Answer]]]:
        def answer(requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
            for n, text in enumerate(texts[name]):
                yield n, Completed(f" {text}", 9, "stop", -1.0, 9)

        return answer

    for name in texts:
        model = dataclasses.replace(subject(ExactModel(), name, weights=name), answer=generating(name))
        results = evaluate_subjects([model], loaded, [0], 1, tmp_path / name)
        expected = sacrebleu.corpus_bleu(texts[name], [references], tokenize="intl").score
        assert results.cells[0].metric == "BLEU" and results.cells[0].value == pytest.approx(expected)
        signature = results.tasks["wmt14_fr_en"]["signatures"]["BLEU"]
        assert "case:mixed" in signature and "tok:intl|smooth:exp" in signature and signature in results.table()
    _, _, found = paired.compare(str(tmp_path / "a"), str(tmp_path / "b"))
    by_metric = {each.metric: each for each in found}
    bleu = by_metric["BLEU"]
    for value, name in ((bleu.a, "a"), (bleu.b, "b")):
        assert value == pytest.approx(sacrebleu.corpus_bleu(texts[name], [references], tokenize="intl").score)
    assert bleu.difference == pytest.approx(bleu.b - bleu.a) and bleu.difference > 10
    assert bleu.stderr and bleu.stderr > 0
    assert (bleu.a_better, bleu.b_better) == (0, 3) and by_metric["BLEU 13a"].b > by_metric["BLEU 13a"].a
    _, _, same = paired.compare(str(tmp_path / "a"), str(tmp_path / "a"))
    assert same[0].difference == same[0].stderr == 0, "the same items are drawn for both"


def test_items_that_do_not_count_are_not_compared() -> None:
    def scores(*found: tuple[float, float]) -> paired.Scores:
        items = [str(n) for n in range(len(found))]
        prompts = dict.fromkeys(items, frozenset(["p"]))
        return paired.Scores(dict(zip(items, found, strict=True)), prompts, dict.fromkeys(items, "f"), {})

    # The first item's people disagree: it has a score, and a weight of 0.
    a, b = scores((1.0, 0.0), (0.5, 1.0), (0.0, 1.0)), scores((0.0, 0.0), (1.0, 1.0), (0.0, 1.0))
    found = paired._compare(("quac", "0", "QuAC F1"), a, b)
    assert (found.items, found.only_one, found.a, found.b) == (2, 0, 25, 50)
    assert (found.a_better, found.b_better) == (0, 1)
    assert found.stderr == pytest.approx(25)  # of gains 50 and 0: standard deviation 35.36, over the root of 2


def test_perplexities_without_bound_are_compared_and_written_as_null(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = tmp_path / "d.jsonl"
    # A word of n bytes costs 5.545 n nats: more than a number holds, and so much that its square is.
    for name, bytes_of in (("more", 1000), ("square", 100)):
        documents.write_text("".join(json.dumps({"text": "a" * (bytes_of + n)}) + "\n" for n in (0, 20)))
        both = [subject(ExactModel(), "a"), subject(ExactModel(), "b", weights="v")]
        evaluate_subjects(both, load_tasks(select([f"text:{documents}"])), [0], 1, tmp_path / name)
        lines = [json.loads(line) for line in (tmp_path / name / ITEMS).read_text().splitlines()]
        for line in lines:
            if line["model"] == "b" and line["item"] == "0":
                line["scores"]["perplexity per word"] *= 0.9
        (tmp_path / name / ITEMS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        capsys.readouterr()
        assert front.main(["report", "compare", str(tmp_path / name), "--json"]) == 0
        found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))["comparisons"]
        words = next(each for each in found if each["metric"] == "perplexity per word")
        if name == "more":
            assert (words["a"], words["difference"], words["stderr"]) == (None, None, None)
        else:
            assert words["stderr"] > 1e200
        assert front.main(["report", "compare", str(tmp_path / name)]) == 0


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, knows in (("a", lambda a, b: a % 2 == 0), ("b", lambda a, b: True)):
        run(tmp_path / name, knows, name)
    capsys.readouterr()
    assert front.main(["report", "compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "B better" in capsys.readouterr().out
    assert front.main(["report", "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["comparisons"][0]["b"] == 100


def test_what_cannot_be_compared_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "a", lambda a, b: True, "a")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / ITEMS).write_text('{"model": "m", "task": "t"}\n')
    loaded = load_tasks(select(["three_digit_addition"]), limit=2)
    evaluate_subjects([subject(ExactModel())], loaded, [0], 1, tmp_path / "other")
    for argv, code, message in (
        ([], 2, "report compare got 0 folders; expected two"),
        (["a"], 2, "a holds 1 models; expected two folders, or one with two models"),
        (["a", "none"], 2, "none has no items.jsonl; expected a folder that gpt3-jax evaluate --out wrote"),
        (["a", "broken"], 1, "line 1 is damaged (KeyError: 'scores'); evaluate again"),
        (["a", "other"], 2, "have no task with the same K in common"),
    ):
        capsys.readouterr()
        assert front.main(["report", "compare", *(str(tmp_path / name) for name in argv)]) == code
        assert message in capsys.readouterr().err
    assert front.main(["report", "paper", "a"]) == 2
    assert "FOLDER is not an option of report paper, but of report compare" in capsys.readouterr().err


def test_pictures_are_drawn_where_results_are_enough(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    loaded = load_tasks(select([f"{TASK},three_digit_addition"]), limit=5)
    one = subject(ExactModel())
    results = evaluate_subjects([one], loaded, [0])
    assert picture.draw(results, tmp_path) == []
    many = [
        dataclasses.replace(one, name=str(n), about={"parameters": 10**n, "tokens": 5 * 10**n}) for n in range(7, 10)
    ]
    results = evaluate_subjects(many, loaded, [0, 2, "max"])
    assert picture.draw(results, tmp_path) == ["shots.png", "size.png", "tokens.png"]
    for name in ("shots.png", "size.png", "tokens.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_mean_over_tasks_is_of_what_all_of_them_have() -> None:
    loaded = load_tasks(select([f"{TASK},three_digit_addition,four_digit_addition"]), limit=4)
    knows = ExactModel(lambda a, b: a < 100 or b % 2 == 0)
    results = evaluate_subjects([subject(knows)], loaded, [0, 1])
    groups = by_task(results.cells)
    assert not picture._mean(dict(list(groups.items())[:2])), "too few"
    ((name, means),) = picture._mean(groups).items()
    assert name == ("mean of 3 tasks", "exact match") and [cell.shots for cell in means] == [0, 1]
    of_k0 = [cell for cell in results.cells if cell.shots == 0]
    assert means[0].value == pytest.approx(sum(cell.value for cell in of_k0) / 3)
    assert means[0].stderr == pytest.approx(math.sqrt(sum((cell.stderr or 0) ** 2 for cell in of_k0)) / 3)
    other = [dataclasses.replace(cell, metric="SQuAD F1", value=0.0) for cell in groups[TASK, "exact match"]]
    assert picture._mean(groups | {(TASK, "SQuAD F1"): other}) == {name: means}, "one metric of each task"
    first = groups.pop((TASK, "exact match"))
    mixed = picture._mean(groups | {(TASK, "SQuAD F1"): other, (TASK, "exact match"): first})
    assert list(mixed) == [("mean of 3 tasks", "accuracy")]
