"""What a task is: one declarative entry that the protocol reads."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

from gpt3_jax.cluster.log import log
from gpt3_jax.data.files import is_folder, read_errors, reason
from gpt3_jax.errors import UserError
from gpt3_jax.evals.scoring import Rule
from gpt3_jax.evals.tasks.item import Items
from gpt3_jax.paths import local_path

Value = str | int | float | bool


@dataclasses.dataclass(frozen=True)
class Source:
    """What the command gives to the loaders."""

    data: str | None = None
    """Folder of the data sets' own files."""
    words: str | None = None
    """File of words, one a line; None: a list of this machine."""

    @functools.cached_property
    def files(self) -> tuple[str, ...]:
        """The paths of all files of `data` at any depth, relative to it, in the order of their names. Links are
        followed, a folder once. Hidden files and folders are left out, and macOS's copies of their attributes. Raises
        UserError if the folder is not there, RunError if it cannot be read."""
        if self.data is None:
            return ()
        if not is_folder(self.data):
            raise UserError(f"the folder of data sets {self.data!r} is not there; give one that is")
        found: list[str] = []
        visited: set[str] = set()
        with read_errors(self.data):
            for folder, folders, names in os.walk(self.data, onerror=_not_looked_into, followlinks=True):
                real = os.path.realpath(folder)
                if real in visited:
                    folders.clear()
                    continue
                visited.add(real)
                folders[:] = sorted(each for each in folders if each[0] != "." and each != "__MACOSX")
                inside = os.path.relpath(folder, self.data)
                found += [
                    name if inside == "." else os.path.join(inside, name) for name in sorted(names) if name[0] != "."
                ]
        return tuple(found)


def _not_looked_into(error: OSError) -> None:
    log.warning(f"cannot look into {error.filename}: {reason(error)}; data sets in it are not found")


@dataclasses.dataclass(frozen=True)
class Open:
    """A setting that the paper leaves open: a field of the task's entry, and what is not known about it.

    The field is looked up in the task's scoring rule, then in the task, then in its `options`. The entry's value is
    the default.
    """

    name: str
    why: str
    """One sentence: what the paper does not say, and what the default is."""
    choices: tuple[str, ...] = ()
    """What a text may be; empty: anything."""
    path: bool = False
    """Whether it is a file of the user's."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of the paper, or one like them. Fields that the paper leaves open are listed in `open`."""

    name: str
    load: Callable[[Source, Mapping[str, Value]], Items]
    """Reads or generates the examples; gets `options` too."""
    scoring: Rule
    metrics: tuple[str, ...]
    """Names in `gpt3_jax.evals.metrics.METRICS`; the first is the task's own."""
    shots: int
    """The paper's K (Table H.1)."""
    delimiter: str
    """Between examples: one newline or two, by task (section 2.4)."""
    row: str | None = None
    """The task's row in Table H.1; None: it is not one of the paper's."""
    separator: str = " "
    """Between a context and its completion, unless the context ends with a newline."""
    instruction: str = ""
    instructed: Literal["always", "zero-shot", "few-shot", "each", "never"] = "zero-shot"
    """With which K the instruction stands at the top; or in front of each example."""
    below_instruction: str | None = None
    """Between instruction and examples; None: the delimiter."""
    leading: bool = False
    """Whether the delimiter also stands before the first example, as in OpenAI's files."""
    draw: Literal["item", "fixed"] = "item"
    """Demonstrations drawn for each item, or once for all of them (WSC and MultiRC)."""
    splits: tuple[str, str] = ("test", "test")
    """Names of the splits: evaluated, and demonstrations."""
    options: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    """Settings of the loader."""
    open: tuple[Open, ...] = ()
    about: str = ""
    """One line for the list of tasks."""
    missing: Callable[[Source, Mapping[str, Value]], str | None] = lambda _, __: None
    """One line if the files that the task needs are not there."""
    optional: bool = False
    """Whether the task is left out, with that line, where its files are not there or no item fits the model's context,
    and a K for which it has too few examples."""

    def __post_init__(self) -> None:
        for each in self.open:
            self._home(each.name)  # an entry that names no field is a defect, found when it is imported

    def setting(self, name: str) -> Value:
        """The current value of an open setting."""
        home = self._home(name)
        value: Value = home[name] if isinstance(home, Mapping) else getattr(home, name)
        return value

    def settings(self) -> dict[str, dict[str, Value]]:
        """All open settings for a result file: value, and what the paper does not say."""
        return {each.name: {"value": self.setting(each.name), "why": each.why} for each in self.open}

    def changed(self, name: str, text: str) -> Task:
        """The same task with an open setting read from the user's text.

        Raises:
            UserError: the task has no such setting, or the text is no value for it.
        """
        known = {each.name: each for each in self.open}
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "it has none"
            raise UserError(f"task {self.name} has no open setting {name!r}; {there}")
        what = f"{self.name}.{name}"
        value = (
            local_path(text, what) if known[name].path else _parse(what, text, self.setting(name), known[name].choices)
        )
        home = self._home(name)
        if home is self:
            fields: dict[str, Any] = {name: value}
        elif isinstance(home, Mapping):
            fields = {"options": {**home, name: value}}
        else:
            fields = {"scoring": dataclasses.replace(self.scoring, **{name: value})}
        return dataclasses.replace(self, **fields)

    def _home(self, name: str) -> Any:
        for home in (self.scoring, self):
            if name in {field.name for field in dataclasses.fields(home)}:
                return home
        if name in self.options:
            return self.options
        raise ValueError(f"task {self.name}: {name!r} is neither a field of it or of its scoring rule, nor an option")


def _parse(what: str, text: str, now: Value, choices: tuple[str, ...]) -> Value:
    try:
        if isinstance(now, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(now, int):
            value = int(text)
            if value < min(now, 1):  # a default of 0 has a meaning of its own
                raise ValueError
            return value
        if isinstance(now, float):
            return float(text)
    except (KeyError, ValueError):
        kind = "true or false" if isinstance(now, bool) else "a number"
        kind += f" from {min(now, 1)}" if kind == "a number" and isinstance(now, int) else ""
        raise UserError(f"{what} is {text!r}; expected {kind} (default: {now})") from None
    if choices and text not in choices:
        raise UserError(f"{what} is {text!r}; expected one of {', '.join(choices)} (default: {now})")
    return text.replace("\\n", "\n")
