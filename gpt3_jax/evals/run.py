"""Evaluates models on tasks: prepares the prompts, has the requests answered, turns answers into numbers."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gpt3_jax import __version__
from gpt3_jax.cluster.log import log
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.evals import protocol
from gpt3_jax.evals.encoding import windows_of
from gpt3_jax.evals.kept import KeptAnswers
from gpt3_jax.evals.metrics import METRICS, Estimate, Scored
from gpt3_jax.evals.protocol import LeftOut, Prepared, Shots
from gpt3_jax.evals.requests import (
    Answer,
    Completed,
    Completion,
    Request,
    Score,
    Text,
    TextScore,
    Window,
    WindowScore,
)
from gpt3_jax.evals.results import Cell
from gpt3_jax.evals.scoring import EachAnswer
from gpt3_jax.evals.subject import Subject
from gpt3_jax.evals.table_h1 import size_of
from gpt3_jax.evals.tasks.item import Item, Items
from gpt3_jax.evals.tasks.task import Task
from gpt3_jax.quantities import duration

_EVERY_SECONDS = 15.0


@dataclasses.dataclass(frozen=True)
class TaskItems:
    """A task with its examples."""

    task: Task
    items: Items
    evaluated: Sequence[Item]
    """The items of the test split that are evaluated: all, or the first `limit`."""

    def as_data(self) -> dict[str, Any]:
        task = self.task
        return {
            "row": task.row,
            "source": self.items.source,
            "splits": {"evaluated": task.splits[0], "demonstrations": task.splits[1]},
            "items": len(self.items.test),
            "evaluated": len(self.evaluated),
            "fingerprint": dataclasses.replace(self.items, test=self.evaluated).fingerprint(),
            "metrics": list(task.metrics),
            "signatures": {name: sign() for name in task.metrics if (sign := METRICS[name].signature)},
            "shots": task.shots,
            "scoring": {"rule": type(task.scoring).__name__, **_fields(task.scoring)},
            "delimiter": task.delimiter,
            "separator": task.separator,
            "instruction": task.instruction,
            "instructed": task.instructed,
            "draw": task.draw,
            "open": task.settings(),
        }


def _fields(of: Any) -> dict[str, Any]:
    return {field.name: getattr(of, field.name) for field in dataclasses.fields(of)}


def run(
    subject: Subject,
    loaded: Sequence[TaskItems],
    shots: Sequence[Shots | None],
    seeds: int,
    kept: KeptAnswers | None = None,
    on_record: Callable[[dict[str, Any]], None] = lambda _: None,
    progress: bool = True,
) -> list[Cell]:
    """The numbers of one model.

    Args:
        shots: K of each column; None: the paper's K of each task.
        seeds: how often demonstrations are drawn: with the seeds 0 to `seeds` - 1. Without demonstrations there is
            nothing to draw, and one seed is run.
        kept: answers of earlier runs are taken from it, and new ones added.
        on_record: gets one record for each item, K and seed.
        progress: whether to log what is done and how much time is left.

    Raises:
        UserError: no item of any task fits into the model's context.
        RunError: a likelihood is not a finite number.
    """
    cells: list[Cell] = []
    warned: set[str] = set()
    places = [(each, k) for each in loaded for k in columns(each, shots)]
    for number, (each, k) in enumerate(places, start=1):
        where = f"{subject.name}: {each.task.name}, K = {k} ({number} of {len(places)})" if progress else ""
        alone = number == len(places) and not cells  # nothing else was evaluated
        cells += _evaluate(subject, each, k, range(seeds if k else 1), kept, on_record, where, warned, alone)
    return cells


def check_examples(loaded: Sequence[TaskItems], shots: Sequence[Shots | None]) -> None:
    """Says which K of optional tasks are left out. Raises UserError if another task has too few examples for a K, or
    nothing is left to evaluate."""
    for each in loaded:
        for k in (each.task.shots if k is None else k for k in shots):
            if each.task.optional and (line := protocol.too_few(each.task, each.items, k)):
                log.info(f"{line}; K = {k} is left out")
        for k in columns(each, shots):
            protocol.check_shots(each.task, each.items, k)
    if not any(columns(each, shots) for each in loaded):
        raise UserError("there is nothing to evaluate; name at least one task and one K")


def columns(loaded: TaskItems, shots: Sequence[Shots | None]) -> list[Shots]:
    """Each K of a task once, with the paper's in place of None; of an optional task, those that it has examples for."""
    task = loaded.task
    if not task.scoring.prompted:
        return [0]  # a text has no demonstrations
    wanted = dict.fromkeys(task.shots if k is None else k for k in shots)
    return [k for k in wanted if not (task.optional and protocol.too_few(task, loaded.items, k))]


def _evaluate(
    subject: Subject,
    loaded: TaskItems,
    shots: Shots,
    seeds: Sequence[int],
    kept: KeptAnswers | None,
    on_record: Callable[[dict[str, Any]], None],
    where: str,
    warned: set[str],
    alone: bool,
) -> list[Cell]:
    task = loaded.task
    preparer = protocol.Preparer(task, loaded.items, subject.tokenizer, subject.config.n_ctx)
    made = [preparer.prepare(item, shots, seed) for seed in seeds for item in loaded.evaluated]
    prepared = [each for each in made if isinstance(each, Prepared)]
    left_out = {each.item.id: each for each in made if isinstance(each, LeftOut)}
    if not prepared:
        shortest = min(each.tokens for each in left_out.values())
        line = (
            f"task {task.name}: none of its {len(left_out)} items fits into the context of {subject.config.n_ctx} "
            f"tokens of {subject.name}; the shortest takes {shortest}"
        )
        if alone:
            raise UserError(line)
        log.warning(f"{line}; K = {shots} is left out")
        return []
    asked: dict[Request, str] = {}
    for each in prepared:
        for request in each.requests:
            asked.setdefault(request, each.item.id)
    if task.name not in warned:  # said once, not for each K
        warned.add(task.name)
        _warn_of_impossible_answers(subject, task, prepared)
    generates = any(isinstance(request, Completion) for request in asked)
    answers = answer_all(subject, task.name, asked, kept, where)
    scored = []
    for each in prepared:
        judgement = task.scoring.judge([answers[request] for request in each.requests], each.item)
        scored.append(Scored(each.item, each.seed, judgement))
        on_record(_record(subject, task, shots, each, scored[-1], answers))
    straddling = sum(isinstance(found := answers[request], Score) and found.straddles for request in asked)
    cells = []
    for name in task.metrics:
        metric = METRICS[name]
        whole: Estimate = metric.estimate(metric, scored)
        apart = [metric.estimate(metric, [each for each in scored if each.seed == seed]).value for seed in seeds]
        cells.append(
            Cell(
                model=subject.name,
                task=task.name,
                metric=name,
                shots=shots,
                value=whole.value,
                stderr=whole.stderr,
                detectable=whole.detectable,
                items=whole.items,
                left_out=len(left_out),
                seeds=tuple(seeds),
                by_seed=tuple(apart),
                # What is generated can be anything, and is seldom one of the choices by chance.
                chance=None if generates or name != "accuracy" else protocol.chance([each.item for each in prepared]),
                row=task.row,
                size=size_of(subject.config),
                shots_mean=statistics.fmean(each.shots for each in prepared),
                prompts_with_fewer=sum(each.dropped > 0 for each in prepared),
                prompts_lacking=sum(each.lacking > 0 for each in prepared),
                straddling=straddling,
            )
        )
    return cells


def _warn_of_impossible_answers(subject: Subject, task: Task, prepared: Sequence[Prepared]) -> None:
    """Says how many items no completion can answer, because it would end before the answer does. Items of which nothing
    is generated are not among them."""

    def possible(answer: str, how: Completion) -> bool:
        whole = not any(stop in answer.strip() for stop in how.stop)
        return whole and len(subject.tokenizer.encode(answer)) <= how.max_tokens

    asked = {
        each.item.id: (each.item, how) for each in prepared for how in each.requests if isinstance(how, Completion)
    }
    lost = [how for item, how in asked.values() if not any(possible(answer, how) for answer in item.accepted)]
    if lost:
        stop = " or ".join(map(repr, lost[0].stop))
        log.warning(
            f"task {task.name}: {len(lost)} of {len(asked)} items cannot be answered: their answers contain the stop "
            f"string {stop} or are longer than {lost[0].max_tokens} tokens; change them with --set stop=…, "
            "--set max_tokens=…"
        )


def answer_all(
    subject: Subject, task: str, asked: Mapping[Request, str], kept: KeptAnswers | None, where: str
) -> dict[Request, Answer]:
    """The answers to requests. Texts that are longer than the context are asked for, and kept, window by window. Logs
    progress with the time left, unless `where` is empty.

    Args:
        asked: each request with the id of the first item that asks it.

    Raises:
        UserError: a stride that is no part of the context.
        RunError: a likelihood is not a finite number. It is not kept.
    """
    parts = _in_windows(subject, asked, kept)
    units: dict[Request, str] = {}
    for request, item in asked.items():
        for unit in parts[request] if isinstance(request, Text) and request in parts else [request]:
            units.setdefault(unit, item)
    answers = {unit: known for unit in units if kept and (known := kept.get(unit)) is not None}
    missing = [unit for unit in units if unit not in answers]
    what = "windows" if parts else "requests"
    before = f", {len(answers):,} more were answered before" if answers else ""
    if where:
        log.info(f"{where}: {len(missing):,} {what}{before}")
    start = last = time.monotonic()
    for done, (index, answer) in enumerate(subject.answer(missing) if missing else (), start=1):
        unit = missing[index]
        if not math.isfinite(answer.logprob):
            raise RunError(
                f"{subject.name}: task {task}, item {units[unit]}: the log-likelihood is {answer.logprob}; "
                "expected a finite number: the model's weights are probably not finite; evaluate another checkpoint"
            )
        answers[unit] = answer
        if kept:
            kept.add(unit, answer)
        now = time.monotonic()
        if where and now - last >= _EVERY_SECONDS:
            last, left = now, (now - start) / done * (len(missing) - done)
            log.info(f"{where}: {done:,} of {len(missing):,} {what}, {duration(left)} left")
    for text, windows in parts.items():
        found = [score for window in windows if isinstance(score := answers[window], WindowScore)]
        answers[text] = TextScore.of(text.text, found)
    return answers


def _in_windows(subject: Subject, asked: Iterable[Request], kept: KeptAnswers | None) -> dict[Text, list[Window]]:
    """The windows of the texts that are longer than the context, but for those that are kept as a whole."""
    found: dict[Text, list[Window]] = {}
    for text in asked:
        if isinstance(text, Text) and (kept is None or kept.get(text) is None):
            windows = windows_of(text, subject.tokenizer, subject.config.n_ctx)
            if len(windows) > 1:
                found[text] = windows
    return found


def _record(
    subject: Subject,
    task: Task,
    shots: Shots,
    prepared: Prepared,
    scored: Scored,
    answers: Mapping[Request, Answer],
) -> dict[str, Any]:
    """One item as it was asked and answered."""
    item, judgement = prepared.item, scored.judgement
    record: dict[str, Any] = {
        "model": subject.name,
        "task": task.name,
        "shots": shots,
        "seed": prepared.seed,
        "item": item.id,
        "fingerprint": item.fingerprint(),
        "demonstrations": list(prepared.demonstrations),
        "prompts": list(prepared.prompts),
        "expected": list(item.accepted) if not item.right else item.completion,
        "scores": {name: METRICS[name].score(item, judgement) for name in task.metrics if METRICS[name].by_items},
        "weights": {name: METRICS[name].weight(item, judgement) for name in task.metrics},
    }
    if item.choices or item.contexts:
        record |= {
            "choices": list(item.choices or item.contexts),
            "right": list(item.right),
            "chosen": list(judgement.picked) if isinstance(task.scoring, EachAnswer) else judgement.chosen,
            "compared": list(judgement.values),
        }
    if judgement.text is not None:
        record["generated"] = judgement.text
    record["answers"] = [_short(answers[request]) for request in prepared.requests]
    return record


def _short(answer: Answer) -> dict[str, Any]:
    """An answer without its single tokens."""
    fields = dataclasses.asdict(answer)
    if isinstance(answer, Completed):
        fields.pop("text")
    return {name: value for name, value in fields.items() if not name.startswith("token_")}


def made_by() -> dict[str, Any]:
    """Versions and time, for the result file."""
    return {
        "gpt3_jax": __version__,
        "jax": importlib.metadata.version("jax"),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "protocol": "paper",
    }
