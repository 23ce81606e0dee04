"""Evaluates checkpoints on tasks and writes what was found: the Python way in, and what the command does."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt3_jax.cluster.agreement import is_lead
from gpt3_jax.cluster.log import log
from gpt3_jax.config import ParallelConfig
from gpt3_jax.errors import UserError
from gpt3_jax.evals import run
from gpt3_jax.evals.kept import KeptAnswers
from gpt3_jax.evals.protocol import Shots
from gpt3_jax.evals.results import FORMAT, RESULTS, Cell, Results
from gpt3_jax.evals.run import TaskItems
from gpt3_jax.evals.subject import Subject
from gpt3_jax.evals.tasks.select import select
from gpt3_jax.evals.tasks.task import Source, Task
from gpt3_jax.evals.written import alone_in, move, records, remove, require_own, write
from gpt3_jax.generation.generator import Weights
from gpt3_jax.paths import local_path

ITEMS = "items.jsonl"
_OF_LIMIT = ("evaluated", "fingerprint")
"""Fields of a task in a result file that change with the number of items evaluated."""


def evaluate(
    checkpoint: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    tasks: str | Sequence[str],
    shots: Sequence[Shots | None] = (0, 1, 10),
    seeds: int = 1,
    limit: int | None = None,
    data: str | os.PathLike[str] | None = None,
    words: str | os.PathLike[str] | None = None,
    settings: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    parallel: ParallelConfig | None = None,
    weights: Weights | None = None,
) -> Results:
    """Evaluates one or several checkpoints by the paper's protocol (GPT-3 section 2.4).

    Args:
        checkpoint: a run's folder (its newest checkpoint) or a Hugging Face folder; or several.
        tasks: names as in ``gpt3-jax evaluate --tasks``: ``arithmetic``, ``words``, a task, ``text:FILE``, a file.
        shots: each K; "max" for as many demonstrations as fit, None for the paper's K of each task.
        seeds: how often demonstrations are drawn.
        limit: evaluate the first so many items of each task.
        data: folder of data sets' own files, such as OpenAI's; a task is read from its file where it is there.
        words: list of words for the word tasks.
        settings: ``NAME=VALUE`` or ``TASK.NAME=VALUE``, for what the paper leaves open.
        out: folder for results, records of items and kept answers; None: nothing is written.
        parallel: the mesh over all devices, and the ZeRO stage by which it keeps the weights; None: one device.
        weights: float32, bfloat16 or int8, in place of the model's dtype (`loading.load`).

    Raises:
        UserError: an unknown task, a file that cannot be read as one, or a checkpoint that is none.
        RunError: a file or checkpoint cannot be read or written.
    """
    from gpt3_jax.evals.loading import load_each

    for k in shots:
        if k is not None and k != "max" and (not isinstance(k, int) or k < 0):
            raise UserError(f"shots has {k!r}; expected numbers from 0, 'max', or None for the paper's K")
    folders = [checkpoint] if isinstance(checkpoint, (str, os.PathLike)) else list(checkpoint)
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    folder_of_data = None if data is None else local_path(data, "folder of data sets")
    list_of_words = None if words is None else local_path(words, "list of words")
    chosen = load_tasks(select(names, settings, folder_of_data), folder_of_data, list_of_words, limit)
    return evaluate_subjects(load_each(folders, parallel, weights), chosen, shots, seeds, out)


def load_tasks(
    tasks: Sequence[Task],
    data: str | os.PathLike[str] | None = None,
    words: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> list[TaskItems]:
    """The examples of each task. Raises the loaders' errors."""
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; expected at least 1 item")
    source = Source(*(None if path is None else os.fspath(path) for path in (data, words)))
    loaded, left_out = [], dict[str, list[str]]()
    for task in tasks:
        if task.optional and (line := task.missing(source, task.options)):
            left_out.setdefault(line, []).append(task.name)
            continue
        items = task.load(source, task.options)
        loaded.append(TaskItems(task, items, items.test if limit is None else items.test[:limit]))
    for line, names in left_out.items():
        log.info(f"{line}; left out: {', '.join(names)}")
    return loaded


def evaluate_subjects(
    subjects: Iterable[Subject],
    loaded: Sequence[TaskItems],
    shots: Sequence[Shots | None],
    seeds: int = 1,
    out: str | os.PathLike[str] | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> Results:
    """Evaluates models one after the other. With `out`, answers are kept there as they come, and results at the end.

    Raises:
        UserError: nothing to evaluate, too few examples for the demonstrations, or `out` is in use.
        RunError: a file cannot be read or written.
    """
    if seeds < 1:
        raise UserError(f"seeds is {seeds}; expected at least 1")
    run.check_examples(loaded, shots)
    # All of it under one lock: a second evaluation into the folder touches no file, not even between two models.
    with alone_in(out) as folder:
        if folder:
            require_own(folder, FORMAT)
            if (folder / RESULTS).exists():
                log.info(
                    f"{folder / RESULTS} of an earlier evaluation will be replaced; if it holds what the new one does "
                    f"not, it is moved to {_unused(folder)}"
                )
        return _evaluate(subjects, loaded, shots, seeds, folder, made_by or {})


def _evaluate(
    subjects: Iterable[Subject],
    loaded: Sequence[TaskItems],
    shots: Sequence[Shots | None],
    seeds: int,
    folder: Path | None,
    made_by: Mapping[str, Any],
) -> Results:
    cells: list[Cell] = []
    models: list[dict[str, Any]] = []
    with records(folder / ITEMS if folder else None) as on_record:
        for subject in subjects:
            if subject.name in {model["name"] for model in models}:
                subject = dataclasses.replace(subject, name=f"{subject.name} ({len(models) + 1})")
            with KeptAnswers(folder, subject.depends_on()) if folder else contextlib.nullcontext() as kept:
                cells += run.run(subject, loaded, shots, seeds, kept, on_record)
            models.append(subject.as_data())
            del subject  # its weights are freed before the next model's are loaded
        tasks = {each.task.name: each.as_data() for each in loaded}
        results = Results(tuple(cells), tuple(models), tasks, {**run.made_by(), **made_by})
        if folder and is_lead():
            _keep_earlier(folder, results)
    if folder and is_lead():
        write(folder / RESULTS, results.to_json())
        _draw(results, folder)
    return results


def _keep_earlier(folder: Path, results: Results) -> None:
    """Moves earlier results out of the way if they hold what these do not (`_held`), or cannot be read."""
    path = folder / RESULTS
    try:
        earlier = _held(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        log.warning(f"{path} is damaged or of another version, and what it holds cannot be compared")
    else:
        new = _held(json.loads(results.to_json()))
        # More items of a task begin with the same ones; as many must be the same.
        if all(what in new and (new[what] == held or new[what][0] > held[0]) for what, held in earlier.items()):
            return
    move(folder, _unused(folder), (RESULTS, ITEMS))


def _held(data: Any) -> dict[str, tuple[int, str]]:
    """For each number of a result file the items behind it: how many, and the fingerprint of those evaluated. A number
    is that of a model (weights, tokenizer, configuration, and int8), a task as it was set up, a metric, a K and a seed.

    Raises:
        ValueError, KeyError, TypeError: the data are of another form.
    """
    models = {
        model["name"]: [
            *(model[field] for field in ("weights", "tokenizer", "model")),
            model.get("engine", {}).get("weights"),
        ]
        for model in data["models"]
    }
    held = {}
    for cell in data["cells"]:
        task = {name: value for name, value in data["tasks"][cell["task"]].items() if name not in _OF_LIMIT}
        for seed in cell["seeds"]:
            what = [models[cell["model"]], cell["task"], task, cell["metric"], cell["shots"], seed]
            held[json.dumps(what, sort_keys=True)] = (cell["items"], data["tasks"][cell["task"]]["fingerprint"])
    return held


def _unused(folder: Path) -> Path:
    """The folder that earlier results are moved to."""
    return next(path for n in itertools.count(1) if not (path := folder / f"earlier-{n}").exists())


def _draw(results: Results, folder: Path) -> None:
    from gpt3_jax.evals import picture  # imports what only pictures need

    for earlier in (picture.BY_SHOTS, picture.BY_SIZE, picture.BY_TOKENS):  # they may show what was here before
        remove(folder / earlier)
    try:
        for name in picture.draw(results, folder):
            log.info(f"wrote {folder / name}")
    except UserError as error:  # matplotlib is optional
        log.info(f"no pictures: {error}")
