"""Tasks by the names that the user gives: a task, a group, a file, ``text:FILE``, ``analogies:FILE``."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence

from gpt3_jax.cluster.log import log
from gpt3_jax.data.files import is_file, is_folder, regular
from gpt3_jax.errors import UserError
from gpt3_jax.evals.scoring import Generated
from gpt3_jax.evals.tasks import (
    analogies,
    anli,
    arithmetic,
    closed_book,
    completion,
    openai_files,
    perplexity,
    reading,
    reasoning,
    superglue,
    text,
    translation,
    winograd,
    words,
)
from gpt3_jax.evals.tasks.item import Items
from gpt3_jax.evals.tasks.open_settings import GENERATED
from gpt3_jax.evals.tasks.task import Open, Source, Task, Value
from gpt3_jax.paths import local_path

GROUPS: Mapping[str, tuple[Task, ...]] = {
    "arithmetic": tuple(task for task in arithmetic.TASKS if task.row),
    "words": words.TASKS,
    "superglue": superglue.TASKS,
    "anli": anli.TASKS,
    "arc": reasoning.ARC,
    "race": reasoning.RACE,
    "closed-book": closed_book.TASKS,
    "reading": reading.TASKS,
    "translation": translation.TASKS,
}
"""Tasks of one name; those of the paper (`PAPER`) are all of them."""
TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        *arithmetic.TASKS,
        *words.TASKS,
        *completion.TASKS,
        *winograd.TASKS,
        *reasoning.TASKS,
        *superglue.TASKS,
        *anli.TASKS,
        *closed_book.TASKS,
        *reading.TASKS,
        *translation.TASKS,
        *perplexity.TASKS,
    )
}
PAPER = "paper"
"""The group of all of the paper's tasks whose files are found."""
FROM_FILES: Mapping[str, Callable[[str], Task]] = {"text": text.task, "analogies": analogies.task}
_DELIMITER = Open(
    "delimiter", "The file is none of the paper's tasks; the default is its contexts' own newlines, else two."
)
_FILE = re.compile(r"\.(jsonl|ndjson)(\.(gz|zst))?$", re.IGNORECASE)


def select(names: Sequence[str], settings: Sequence[str] = (), data: str | None = None) -> list[Task]:
    """The tasks of names such as ``arithmetic`` or ``text:book.txt``, in their order, each once.

    Args:
        names: may be joined by commas, unless what is between the commas together is a file.
        settings: ``NAME=VALUE`` or ``TASK.NAME=VALUE``, values for what the paper leaves open.
        data: a folder; a task that would be generated is read from its published file, if it is there.

    Raises:
        UserError: an unknown task or setting, or a file that is not there.
    """
    found: dict[str, Task] = {}
    given: dict[str, str] = {}
    for each in names:
        for name in [each] if os.path.exists(each) else map(str.strip, each.split(",")):
            by_name = name in GROUPS or name in TASKS or name == PAPER
            for task in _named(name):
                if given.setdefault(task.name, "" if by_name else name) != ("" if by_name else name):
                    raise UserError(f"two tasks are named {task.name}; evaluate one of them at a time")
                if task.name not in found or (found[task.name].optional and not task.optional):
                    found[task.name] = _published(task, data) if by_name else task
    return [_set(task, settings) for task in found.values()] if _known(found, settings) else []


def _named(name: str) -> Sequence[Task]:
    kind, colon, rest = name.partition(":")
    if colon and kind in FROM_FILES and not rest.startswith("//"):
        return [FROM_FILES[kind](local_path(rest, f"task {kind}: its path"))]
    if _FILE.search(name) or "/" in name:
        return [_of_file(local_path(name, "task file"))]
    if name == PAPER:
        return [dataclasses.replace(task, optional=True) for task in TASKS.values() if task.row]
    if name in GROUPS:
        return GROUPS[name]
    if name in TASKS:
        return [TASKS[name]]
    known = [PAPER, *GROUPS, *TASKS, *(f"{kind}:FILE" for kind in FROM_FILES)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"the nearest is {near[0]}" if near else f"there are {', '.join(known)}, and files PATH.jsonl"
    raise UserError(f"unknown task {name!r}; {hint}")


def _published(task: Task, data: str | None) -> Task:
    """The task from its file in the folder `data`, or as it is."""
    if data is None:
        return task
    if not is_folder(data):
        raise UserError(f"the folder of data sets {data!r} is not there; give one that is")
    if "test_file" in task.options:
        return task  # it finds its files itself
    for name in (f"{task.name}.jsonl", f"{task.name}.jsonl.gz"):
        if is_file(path := os.path.join(data, name)):
            return _of_file(path)
    log.info(f"{data} has no {task.name}.jsonl or .jsonl.gz; the task is generated")
    return task


def _of_file(path: str) -> Task:
    """The task of a file of contexts and completions: one of the paper's by the file's name, or a plain one."""
    regular(path)
    stem = _FILE.sub("", os.path.basename(path))
    load = functools.partial(_load, path)
    if stem in TASKS:
        # What the generator needs has no meaning for a file.
        task = TASKS[stem]
        here = tuple(each for each in task.open if each.name not in task.options)
        return dataclasses.replace(
            task, load=load, missing=lambda _, __: None, options={}, open=here, splits=("itself", "itself")
        )
    rows = openai_files.read(path)
    newlines, space = openai_files.frame(rows)
    plain = Task(
        name=stem,
        load=load,
        scoring=Generated(),
        metrics=("exact match",),
        shots=0,
        delimiter="\n\n",
        splits=("itself", "itself"),
        open=(
            *GENERATED,
            _DELIMITER,
        ),
        about="contexts and completions of a file",
    )
    return openai_files.framed(plain, newlines, space)


def _load(path: str, _: Source, __: Mapping[str, Value]) -> Items:
    rows = openai_files.read(path)
    return openai_files.items(rows, path, *openai_files.frame(rows))


def _known(tasks: Mapping[str, Task], settings: Sequence[str]) -> bool:
    """Raises UserError for a setting that no task has."""
    for each in settings:
        name, equals, _ = each.partition("=")
        task, _, field = name.rpartition(".")
        if not equals:
            raise UserError(f"--set {each!r} has no value; write NAME=VALUE or TASK.NAME=VALUE")
        if task and task not in tasks:
            raise UserError(f"--set {each!r}: {task!r} is not among the tasks {', '.join(tasks)}")
        fields = {one.name for of in tasks.values() if task in ("", of.name) for one in of.open}
        if field not in fields:
            raise UserError(
                f"--set {each!r}: no task has an open setting {field!r}; there are {', '.join(sorted(fields))}"
            )
    return True


def _set(task: Task, settings: Sequence[str]) -> Task:
    for each in settings:
        name, _, value = each.partition("=")
        of, _, field = name.rpartition(".")
        if of == task.name or (not of and any(one.name == field for one in task.open)):
            task = task.changed(field, value)
    return task
