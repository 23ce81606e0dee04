"""The paper's protocol: prompts, demonstrations, scoring, metrics, kept answers."""

from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
from pathlib import Path

import pytest

from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.evals import metrics, prompts, protocol
from gpt3_jax.evals.kept import FILE, KeptAnswers
from gpt3_jax.evals.metrics import METRICS, Scored
from gpt3_jax.evals.requests import Answer, Beam, Completed, Completion, Continuation, Greedy, Request, Score, TextScore
from gpt3_jax.evals.scoring import AnswerNormalised, Generated, Judgement, MeanLogLikelihood, PartialEvaluation
from gpt3_jax.evals.tasks import openai_files
from gpt3_jax.evals.tasks.item import Item, Items
from gpt3_jax.evals.tasks.open_settings import GENERATED
from gpt3_jax.evals.tasks.select import GROUPS, TASKS
from gpt3_jax.evals.tasks.task import Open, Source, Task
from gpt3_jax.evals.written import alone_in

BYTES = ByteTokenizer()
POOL = [Item(str(n), f"Q: {n}", f"{n * n}") for n in range(12)]
ITEMS = Items(POOL, POOL, "squares")


def squares(**fields: object) -> Task:
    task = Task(
        name="squares",
        load=lambda *_: ITEMS,
        scoring=Generated(max_tokens=4),
        metrics=("exact match",),
        shots=3,
        delimiter="\n",
        open=GENERATED,
    )
    return dataclasses.replace(task, **fields)  # type: ignore[arg-type]


def score(logprob: float, tokens: int) -> Score:
    return Score(logprob, tokens, False, (logprob / tokens,) * tokens, (False,) * tokens, 1)


def drawn(item: Item, seed: int = 0, task: Task | None = None, items: Items = ITEMS) -> list[str]:
    return [each.id for each in protocol.draw(items, item, seed, task or squares())]


def prepare(task: Task, item: Item, shots: protocol.Shots, n_ctx: int = 1000, seed: int = 0) -> protocol.Prepared:
    made = protocol.Preparer(task, ITEMS, BYTES, n_ctx).prepare(item, shots, seed)
    assert isinstance(made, protocol.Prepared)
    return made


# ---- prompts


@pytest.mark.parametrize("shots", [0, 1, 2, 5])
def test_prompts_of_openais_files_are_their_strings_one_after_the_other(shots: int) -> None:
    rows = [*openai_files.EXAMPLES.values()]
    arithmetic = [row for row in rows if row[0].startswith("\n\n")]
    words = [row for row in rows if not row[0].startswith("\n\n")]
    for task, some, top in (
        (TASKS["two_digit_addition"], arithmetic, ""),
        (TASKS["reversed_words"], words, "Please unscramble the letters into a word, and write that word:"),
    ):
        items = openai_files.items(some, "examples", *openai_files.frame(some))
        for item, row in zip(items.test, some, strict=True):
            made = protocol.Preparer(task, items, BYTES, 2000).prepare(item, min(shots, len(some) - 1), 0)
            assert isinstance(made, protocol.Prepared)
            shown = [some[int(n)] for n in made.demonstrations]
            strings = "".join(context + completion for context, completion in shown)
            assert made.prompts == (top + strings + row[0],)
            (request,) = made.requests
            assert request == Completion(made.prompts[0], ("\n",), request.max_tokens, Beam(4, 0.6, "gnmt"))  # type: ignore[union-attr]


def test_the_instruction_stands_where_the_task_says() -> None:
    def top(instructed: str, shots: int) -> str:
        task = squares(instruction="Square it.", instructed=instructed)
        return prompts.prompt(task, ["a b"] * shots, "c")

    assert [top("always", k) for k in (0, 1)] == ["Square it.\nc", "Square it.\na b\nc"]
    assert [top("zero-shot", k) for k in (0, 1)] == ["Square it.\nc", "a b\nc"]
    assert [top("never", k) for k in (0, 1)] == ["c", "a b\nc"]


def test_nothing_separates_a_completion_from_a_context_that_ends_with_a_newline() -> None:
    task = squares()
    assert prompts.demonstration(task, Item("", "a", "b")) == "a b"
    assert prompts.demonstration(task, Item("", "a\n", "b")) == "a\nb"


def test_zero_shot_has_its_own_context_where_the_item_has_one() -> None:
    item = Item("0", "source =", "target", zero_shot="Q: What is the translation of source A:")
    assert prompts.contexts(squares(), item, 0) == ("Q: What is the translation of source A:",)
    assert prompts.contexts(squares(), item, 1) == ("source =",)


# ---- demonstrations


def test_a_draw_is_of_the_others_without_replacement() -> None:
    for item in POOL:
        assert sorted(drawn(item), key=int) == [each.id for each in POOL if each.id != item.id]
    assert len({tuple(drawn(POOL[0], seed)) for seed in range(20)}) == 20
    assert drawn(POOL[0]) != drawn(POOL[1]) != drawn(POOL[2])


def test_a_draw_is_the_same_in_every_version() -> None:
    # If this changes, results of earlier versions cannot be repeated: do it for a good reason only.
    assert drawn(POOL[3], seed=1)[:5] == ["11", "10", "1", "8", "2"]


def test_each_item_is_drawn_about_equally_often() -> None:
    first = [drawn(POOL[0], seed)[0] for seed in range(1100)]
    counts = [first.count(each.id) for each in POOL[1:]]
    assert sum((count - 100) ** 2 / 100 for count in counts) < 30  # chi-squared, 10 degrees of freedom, p 0.001


def test_an_example_with_the_items_own_text_is_never_shown() -> None:
    twin = Item("again", POOL[0].context, "other")
    pool = [*POOL, twin]
    assert "again" not in drawn(POOL[0], items=Items(pool, pool, ""))
    assert "0" not in drawn(POOL[0], items=Items(POOL[:1], [*POOL, twin], "")), "also in another split"


def test_a_fixed_draw_is_one_for_all_items() -> None:
    fixed = squares(draw="fixed")
    train = [Item(f"t{n}", f"T: {n}", "x") for n in range(9)]
    draws = {tuple(drawn(item, 0, fixed, Items(POOL, train, ""))) for item in POOL}
    assert len(draws) == 1


def test_fewer_demonstrations_are_the_beginning_of_more() -> None:
    shown = [prepare(squares(), POOL[5], k).demonstrations for k in (0, 1, 3, "max")]  # type: ignore[list-item]
    assert shown[3] == tuple(drawn(POOL[5]))
    assert [shown[3][:k] for k in (0, 1, 3)] == shown[:3]


@pytest.mark.parametrize("shots", [8, "max"])
def test_demonstrations_are_dropped_until_the_prompt_fits_and_no_further(shots: protocol.Shots) -> None:
    whole = prepare(squares(), POOL[4], 11)
    for n_ctx in range(9, len(whole.prompts[0]) + 6):
        made = prepare(squares(), POOL[4], shots, n_ctx)
        (request,) = made.requests
        assert protocol.tokens_of(request, BYTES) <= n_ctx
        assert made.prompts[0].endswith("Q: 4"), "the item is never cut"
        assert made.demonstrations == whole.demonstrations[: made.shots]
        assert made.dropped == (0 if shots == "max" else 8 - made.shots)
        if made.shots < (11 if shots == "max" else 8):
            (more,) = prepare(squares(), POOL[4], made.shots + 1).requests
            assert protocol.tokens_of(more, BYTES) > n_ctx


class Runs(ByteTokenizer):
    """A run of one character is one token, so that demonstrations merge at their borders."""

    def encode(self, text: str) -> list[int]:
        return [0 for _ in itertools.groupby(text)]


def test_as_many_fit_as_the_whole_prompt_says_not_the_sum_of_its_parts() -> None:
    pool = [Item(str(n), f"{' ' * (n + 1)}x", "y  ") for n in range(60)]
    items, task = Items(pool, pool, ""), squares(delimiter=" ", scoring=Generated(max_tokens=1), open=())
    for n_ctx in range(4, 250):
        made = protocol.Preparer(task, items, Runs(), n_ctx).prepare(pool[7], "max", 0)
        assert isinstance(made, protocol.Prepared)
        assert protocol.tokens_of(made.requests[0], Runs()) <= n_ctx
        if made.shots < 59:
            more = protocol.Preparer(task, items, Runs(), 1000).prepare(pool[7], made.shots + 1, 0)
            assert isinstance(more, protocol.Prepared) and protocol.tokens_of(more.requests[0], Runs()) > n_ctx
        assert (made.shots == 59) == (n_ctx >= 4 * 59 + 3), "4 tokens each, and those of the item"


def test_what_fits_after_demonstrations_is_measured_in_the_form_that_stands_there() -> None:
    pool = [Item(str(n), f"Q: {n}", "x", zero_shot=f"A question that is much longer: {n}") for n in range(9)]
    items = Items(pool, pool, "")
    whole = protocol.Preparer(squares(), items, BYTES, 1000).prepare(pool[0], 3, 0)
    assert isinstance(whole, protocol.Prepared)
    enough = protocol.tokens_of(whole.requests[0], BYTES)
    assert enough < len(str(pool[0].zero_shot)), "alone it would not fit"
    assert protocol.Preparer(squares(), items, BYTES, enough).prepare(pool[0], 3, 0) == whole
    assert isinstance(protocol.Preparer(squares(), items, BYTES, enough).prepare(pool[0], 0, 0), protocol.LeftOut)
    for n_ctx in range(45, 90):
        made = protocol.Preparer(squares(), items, BYTES, n_ctx).prepare(pool[0], "max", 0)
        assert isinstance(made, protocol.Prepared)
        assert made.shots == min((n_ctx - 8) // 7, 8), "7 tokens each"


def test_demonstrations_that_there_are_not_are_no_ones_that_do_not_fit() -> None:
    twins = [Item(f"twin {n}", POOL[0].context, "other") for n in range(3)]
    items = Items([*POOL, *twins], [*POOL, *twins], "")
    made = protocol.Preparer(squares(), items, BYTES, 1000).prepare(POOL[0], 13, 0)
    assert isinstance(made, protocol.Prepared)
    assert (made.shots, made.dropped, made.lacking) == (11, 0, 2)
    most = protocol.Preparer(squares(), items, BYTES, 1000).prepare(POOL[0], "max", 0)
    assert isinstance(most, protocol.Prepared) and (most.shots, most.dropped, most.lacking) == (11, 0, 0)
    short = protocol.Preparer(squares(), items, BYTES, 40).prepare(POOL[0], 13, 0)
    assert isinstance(short, protocol.Prepared) and short.dropped == 13 - short.shots > 2 and not short.lacking


def test_an_item_that_does_not_fit_alone_is_left_out() -> None:
    made = protocol.Preparer(squares(), ITEMS, BYTES, 7).prepare(POOL[4], 2, 0)
    assert made == protocol.LeftOut(POOL[4], 0, 8)  # "Q: 4" and 4 tokens to generate


def test_too_few_demonstrations_are_refused() -> None:
    for items, shots, message in (
        (Items(POOL, None, "f.jsonl"), 1, "f.jsonl: task squares has no test split to draw 1 demonstrations from"),
        (
            Items(POOL, POOL, "f.jsonl"),
            12,
            "f.jsonl: 12 demonstrations were asked for, and there are 11 other",
        ),
        (Items(POOL, POOL[:2], "f.jsonl"), 3, "f.jsonl: 3 demonstrations were asked for, and there are 2 to draw from"),
        (Items(POOL[:1], POOL[:1], "f.jsonl"), "max", "there are 0 other"),
    ):
        if items.test is items.train or items.train is None or len(items.train) == 2:
            with pytest.raises(UserError, match=message):
                protocol.check_shots(squares(), items, shots)  # type: ignore[arg-type]
        protocol.check_shots(squares(), items, 0)


# ---- scoring

CHOICE = Item("0", "Q", "aa", choices=("aa", "b"), right=(0,))


def test_choices_are_compared_by_log_likelihood_per_token() -> None:
    rule = MeanLogLikelihood()
    assert rule.requests(["P Q"], " ", CHOICE) == [Continuation("P Q", " aa"), Continuation("P Q", " b")]
    # The longer one is less likely, and likelier per token.
    judged = rule.judge([score(-4.0, 4), score(-3.0, 2)], CHOICE)
    assert judged.values == (-1.0, -1.5) and judged.chosen == 0
    assert (judged.logprob, judged.tokens) == (-4.0, 4)
    assert rule.judge([score(-2.0, 2), score(-1.0, 1)], CHOICE).chosen == 0, "the first of equals"


def test_choices_are_normalised_by_their_likelihood_after_the_answer_context() -> None:
    rule = AnswerNormalised("Answer: ")
    assert rule.requests(["P Q"], " ", CHOICE) == [
        Continuation("P Q", " aa"),
        Continuation("P Q", " b"),
        Continuation("Answer:", " aa"),
        Continuation("Answer:", " b"),
    ]
    # log P(c | context) - log P(c | "Answer: "): -6 + 9 = 3 and -2 + 4 = 2.
    judged = rule.judge([score(-6.0, 3), score(-2.0, 1), score(-9.0, 3), score(-4.0, 1)], CHOICE)
    assert judged.values == (3.0, 2.0) and judged.chosen == 0
    each = dataclasses.replace(rule, per_token=True)
    assert each.judge([score(-6.0, 3), score(-2.0, 1), score(-9.0, 3), score(-4.0, 1)], CHOICE).values == (1.0, 2.0)


def test_partial_evaluation_scores_what_follows_the_candidates() -> None:
    item = Item("0", "", "is big.", right=(1,), contexts=("The cup", "The bag"))
    rule = PartialEvaluation()
    assert rule.contexts(item) == ("The cup", "The bag")
    assert rule.requests(["x The cup", "x The bag"], " ", item) == [
        Continuation("x The cup", " is big."),
        Continuation("x The bag", " is big."),
    ]
    assert rule.judge([score(-3.0, 3), score(-2.0, 3)], item).chosen == 1
    made = protocol.Preparer(squares(scoring=rule, open=()), Items([item], [item], ""), BYTES, 100).prepare(item, 0, 0)
    assert isinstance(made, protocol.Prepared) and made.prompts == ("The cup", "The bag")


def test_generated_answers_match_but_for_white_space_around() -> None:
    item = Item("0", "Q", "42", answers=("42", "forty-two"))
    for text, right in ((" 42", 1), ("42 ", 1), ("forty-two", 1), ("4 2", 0), ("42.", 0), ("", 0)):
        assert metrics.exact_match(item, Judgement(text=text)) == right


def test_chance_counts_right_choices() -> None:
    several = dataclasses.replace(CHOICE, choices=("a", "b", "c", "d"), right=(1, 2, 3))
    assert protocol.chance([CHOICE, several]) == 62.5
    assert protocol.chance([POOL[0]]) is None


# ---- metrics


def scored(results: list[tuple[str, int, bool]]) -> list[Scored]:
    return [Scored(Item(name, "", "y"), seed, Judgement(text="y" if right else "n")) for name, seed, right in results]


def test_the_standard_error_of_one_seed_is_the_binomial() -> None:
    found = metrics.mean(METRICS["exact match"], scored([(str(n), 0, n < 30) for n in range(120)]))
    assert found.value == 25 and found.items == 120
    assert found.stderr == pytest.approx(100 * math.sqrt(0.25 * 0.75 / 119))
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * math.sqrt(2) * 100 * math.sqrt(0.25 * 0.75 / 119))


def test_seeds_do_not_multiply_the_items() -> None:
    once = scored([(str(n), 0, n % 3 == 0) for n in range(60)])
    again = [dataclasses.replace(each, seed=seed) for each in once for seed in range(5)]
    metric = METRICS["exact match"]
    assert metrics.mean(metric, again) == metrics.mean(metric, once)
    # Two items: right with one seed of two, and with both. Item means 50 and 100.
    found = metrics.mean(metric, scored([("a", 0, True), ("a", 1, False), ("b", 0, True), ("b", 1, True)]))
    assert found.value == 75 and found.stderr == pytest.approx(25)


def test_nothing_right_is_not_certainty() -> None:
    found = metrics.mean(METRICS["exact match"], scored([(str(n), 0, False) for n in range(100)]))
    share = 2 / 104
    assert found.value == 0 and found.stderr == pytest.approx(100 * math.sqrt(share * (1 - share) / 104))
    assert found.detectable == pytest.approx(280.1585 * math.sqrt(2 * share * (1 - share) / 104), rel=1e-4)
    certain = metrics.mean(METRICS["exact match"], scored([(str(n), 0, True) for n in range(100)]))
    assert certain.value == 100 and certain.stderr == pytest.approx(found.stderr)
    assert metrics.mean(METRICS["exact match"], scored([("a", 0, True)])).stderr is None


def test_ratios_are_of_sums() -> None:
    some = [
        Scored(Item(name, "", ""), 0, Judgement(logprob=-logprob, tokens=tokens, bytes=2 * tokens, words=5))
        for name, logprob, tokens in (("a", 10.0, 4), ("b", 20.0, 16))
    ]
    loss = metrics.ratio(METRICS["loss per token"], some)
    assert loss.value == pytest.approx(30 / 20)
    # Residuals 10 - 1.5 · 4 = 4 and -4; sqrt(2 · 32) / 20.
    assert loss.stderr == pytest.approx(8 / 20)
    assert metrics.ratio(METRICS["bits per byte"], some).value == pytest.approx(30 / 40 / math.log(2))
    words = metrics.ratio(METRICS["perplexity per word"], some)
    assert words.value == pytest.approx(math.exp(3)) and words.stderr is not None
    assert metrics.ratio(METRICS["loss per token"], some[:1]).stderr is None
    again = [dataclasses.replace(each, seed=seed) for each in some for seed in range(5)]
    for name in ("loss per token", "perplexity per word", "bits per byte"):
        once, often = (metrics.ratio(METRICS[name], each) for each in (some, again))
        assert dataclasses.astuple(often) == pytest.approx(dataclasses.astuple(once)), "seeds are not items"


def test_a_standard_error_is_finite_as_far_as_its_value_is() -> None:
    def words(nats: float) -> metrics.Estimate:
        some = [
            Scored(Item(name, "", ""), 0, Judgement(logprob=-total, tokens=1, bytes=1, words=1))
            for name, total in (("a", nats - 1), ("b", nats + 1))
        ]
        return metrics.ratio(METRICS["perplexity per word"], some)

    near = words(699.9999)  # a numerical derivative reaches over the cap of the exponential
    assert near.stderr == pytest.approx(math.exp(699.9999)) and near.detectable == pytest.approx(
        math.sqrt(2) * (metrics.Z_LEVEL + metrics.Z_POWER) * math.exp(699.9999)
    )
    assert (words(701).value, words(701).stderr, words(701).detectable) == (math.inf, None, None)
    for metric in METRICS.values():
        for at in (0.3, 2.0, 20.0):
            slope = (metric.of_ratio(at + 1e-6) - metric.of_ratio(at - 1e-6)) / 2e-6
            assert metric.slope(at) == pytest.approx(slope, rel=1e-6)


# ---- kept answers

REQUESTS: tuple[Request, ...] = (
    Continuation("a", " b"),
    Continuation("a", " c"),
    Completion("a", decoding=Greedy()),
    Completion("a", decoding=Beam()),
)
ANSWERS: tuple[Answer, ...] = (
    score(-1.5, 2),
    TextScore(-3.0, 2, 7, 1),
    Completed("é\n\x00", 2, "stop", -1.0, 3),
    Completed("", 0, "context", float("-inf"), 3),
)


def keep(folder: Path, pairs: list[tuple[Request, Answer]], weights: str = "w") -> None:
    with KeptAnswers(folder, {"weights": weights}) as kept:
        for request, answer in pairs:
            kept.add(request, answer)


def test_kept_answers_are_those_given(tmp_path: Path) -> None:
    pairs = list(zip(REQUESTS, ANSWERS, strict=True))
    keep(tmp_path, pairs)
    with KeptAnswers(tmp_path, {"weights": "w"}) as kept:
        assert [kept.get(request) for request in REQUESTS] == list(ANSWERS)


def test_answers_of_other_weights_are_not_taken() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keep(folder, [(REQUESTS[0], ANSWERS[0])], "w")
        keep(folder, [(REQUESTS[0], ANSWERS[1])], "other")
        for weights, answer in (("w", ANSWERS[0]), ("other", ANSWERS[1]), ("third", None)):
            with KeptAnswers(folder, {"weights": weights}) as kept:
                assert kept.get(REQUESTS[0]) == answer


def test_two_evaluations_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with alone_in(tmp_path):
        with pytest.raises(UserError, match="is in use by another command"), alone_in(tmp_path):
            pass
        keep(tmp_path, [])
        with pytest.raises(UserError, match="is in use"), alone_in(tmp_path):
            pass
    with alone_in(tmp_path):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot make the folder .*file/a: Not a directory; choose another --out"):
        alone_in(tmp_path / "file" / "a").__enter__()
    with pytest.raises(RunError, match=r"cannot keep answers in .*none.*answers\.jsonl: No such file"):
        KeptAnswers(tmp_path / "none", {}).__enter__()


def test_a_line_cut_short_is_answered_again(tmp_path: Path) -> None:
    keep(tmp_path, list(zip(REQUESTS[:2], ANSWERS, strict=False)))
    whole = (tmp_path / FILE).read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        (tmp_path / FILE).write_bytes(whole[:cut])
        with KeptAnswers(tmp_path, {"weights": "w"}) as kept:
            assert kept.get(REQUESTS[0]) == ANSWERS[0] and kept.get(REQUESTS[1]) is None
            kept.add(REQUESTS[1], ANSWERS[1])
        assert (tmp_path / FILE).read_bytes() == whole


def test_a_damaged_line_is_answered_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(tmp_path, list(zip(REQUESTS[:3], ANSWERS, strict=False)))
    lines = (tmp_path / FILE).read_bytes().split(b"\n")
    for bad in (b"{", b"[]", b'{"key": 1}', b"\xff", lines[1].replace(b"tokens", b"token")):
        (tmp_path / FILE).write_bytes(b"\n".join([lines[0], bad, lines[2], b""]))
        with KeptAnswers(tmp_path, {"weights": "w"}) as kept:
            assert [kept.get(each) is not None for each in REQUESTS[:3]] == [True, False, True]


# ---- settings that the paper leaves open


def test_open_settings_are_read_and_reported() -> None:
    task = TASKS["reversed_words"].changed("max_tokens", "9").changed("stop", "\\n\\n").changed("instructed", "never")
    assert task.scoring == Generated(max_tokens=9, stop="\n\n") and task.instructed == "never"
    assert task.changed("items", "7").options["items"] == 7
    assert task.settings()["stop"]["value"] == "\n\n"
    for each in TASKS.values():
        for name, setting in each.settings().items():
            assert str(setting["why"]).endswith("."), (each.name, name)
            if isinstance(setting["value"], (bool, int, float)):
                assert each.changed(name, str(setting["value"])) == each, "the default can be written out"
    for name, field in (("wmt14_en_fr", "train_lines"), ("ptb", "stride"), ("two_digit_addition", "item_seed")):
        assert TASKS[name].changed(field, "0").setting(field) == 0
    with pytest.raises(UserError, match=r"stride is '-1'; expected a number from 0"):
        TASKS["ptb"].changed("stride", "-1")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("max_tokens", "0", r"reversed_words\.max_tokens is '0'; expected a number from 1 \(default: 24\)"),
        ("item_seed", "-1", r"reversed_words\.item_seed is '-1'; expected a number from 0 \(default: 0\)"),
        ("max_tokens", "x", "expected a number"),
        ("penalty", "none", "expected one of gnmt, power"),
        ("alpha", "1", "task reversed_words has no open setting 'alpha'; there are stop, max_tokens"),
    ],
)
def test_wrong_settings_are_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TASKS["reversed_words"].changed(name, text)


def test_an_open_setting_that_names_no_field_is_a_defect() -> None:
    with pytest.raises(ValueError, match="'nothing' is neither"):
        squares(open=(Open("nothing", "."),))


def test_every_generated_task_can_be_loaded_and_evaluated(tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.write_text("".join(f"{''.join(letters)}\n" for letters in itertools.permutations("stream")))
    for task in (*GROUPS["arithmetic"], *GROUPS["words"]):
        items = task.load(Source(words=str(words)), {**task.options, "items": 20})
        made = protocol.Preparer(task, items, BYTES, 1000).prepare(items.test[0], 3, 0)
        assert isinstance(made, protocol.Prepared) and made.shots == 3
