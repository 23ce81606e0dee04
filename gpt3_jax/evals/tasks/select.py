"""Tasks by the names that the user gives: a task, a group, a file, ``text:FILE``, ``analogies:FILE``."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence

from gpt3_jax.data.files import regular
from gpt3_jax.errors import UserError
from gpt3_jax.evals.scoring import Generated
from gpt3_jax.evals.tasks import analogies, arithmetic, openai_files, text, words
from gpt3_jax.evals.tasks.item import Items
from gpt3_jax.evals.tasks.open_settings import GENERATED
from gpt3_jax.evals.tasks.task import Open, Source, Task, Value
from gpt3_jax.paths import local_path

GROUPS: Mapping[str, tuple[Task, ...]] = {
    "arithmetic": tuple(task for task in arithmetic.TASKS if task.row),
    "words": words.TASKS,
}
"""The paper's tasks that need no download."""
TASKS: Mapping[str, Task] = {task.name: task for task in (*arithmetic.TASKS, *words.TASKS)}
FROM_FILES: Mapping[str, Callable[[str], Task]] = {"text": text.task, "analogies": analogies.task}
_DELIMITER = Open(
    "delimiter", "The file is none of the paper's tasks; the default is its contexts' own newlines, else two."
)
_FILE = re.compile(r"\.(jsonl|ndjson)(\.(gz|zst))?$", re.IGNORECASE)


def select(names: Sequence[str], settings: Sequence[str] = ()) -> list[Task]:
    """The tasks of names such as ``arithmetic`` or ``text:book.txt``, in their order, each once.

    Args:
        names: may be joined by commas, unless what is between the commas together is a file.
        settings: ``NAME=VALUE`` or ``TASK.NAME=VALUE``, values for what the paper leaves open.

    Raises:
        UserError: an unknown task or setting, or a file that is not there.
    """
    found: dict[str, Task] = {}
    for each in names:
        for name in [each] if os.path.exists(each) else each.split(","):
            for task in _named(name.strip()):
                if task.name in found and _FILE.search(name):
                    raise UserError(f"task {task.name} is given twice; evaluate one of them at a time")
                found.setdefault(task.name, task)
    return [_set(task, settings) for task in found.values()] if _known(found, settings) else []


def _named(name: str) -> Sequence[Task]:
    kind, colon, rest = name.partition(":")
    if colon and kind in FROM_FILES and not rest.startswith("//"):
        return [FROM_FILES[kind](local_path(rest, f"task {kind}: its path"))]
    if _FILE.search(name) or "/" in name:
        return [_of_file(local_path(name, "task file"))]
    if name in GROUPS:
        return GROUPS[name]
    if name in TASKS:
        return [TASKS[name]]
    known = [*GROUPS, *TASKS, *(f"{kind}:FILE" for kind in FROM_FILES)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"the nearest is {near[0]}" if near else f"there are {', '.join(known)}, and files PATH.jsonl"
    raise UserError(f"unknown task {name!r}; {hint}")


def _of_file(path: str) -> Task:
    """The task of a file of contexts and completions: one of the paper's by the file's name, or a plain one."""
    regular(path)
    stem = _FILE.sub("", os.path.basename(path))
    load = functools.partial(_load, path)
    if stem in TASKS:
        # What the generator needs has no meaning for a file.
        task = TASKS[stem]
        here = tuple(each for each in task.open if each.name not in task.options)
        return dataclasses.replace(task, load=load, options={}, open=here, splits=("itself", "itself"))
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
