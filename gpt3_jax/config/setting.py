"""Declares what a setting means to the rest of the project.

The recipe's quantities (`gpt3_jax.train.recipe`), the resume check (`gpt3_jax.train.checkpoint.resume`), the settings
of a receipt (`gpt3_jax.plan.receipt`) and the old names of settings derive from these declarations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Paper:
    """Where the GPT-3 paper, or a source that it builds on, gives a setting's value."""

    source: str
    published: bool = True
    """Whether the value is published. If not, any value agrees with the paper, unless `gpt3_jax.train.recipe` knows
    what the paper excludes."""
    between: tuple[int, int] | None = None
    """The lowest and the highest value, if the paper gives only a range."""


@dataclasses.dataclass(frozen=True)
class Meaning:
    """The arguments of `setting`."""

    paper: Paper | None = None
    changes_run: bool = True
    changes_cost: bool = False
    was: str = ""
    values_were: tuple[tuple[str, str, str], ...] = ()


def setting(
    default: T,
    *,
    paper: Paper | None = None,
    changes_run: bool = True,
    changes_cost: bool = False,
    was: str = "",
    values_were: tuple[tuple[str, str, str], ...] = (),
) -> T:
    """Declares a field of a section and what it means to the rest of the project.

    Args:
        default: its default value.
        paper: where the paper gives the value; None if it is not part of the recipe.
        changes_run: whether a different value changes what a run computes by more than rounding. A resumed run
            refuses such a change. False for settings that change only where, how fast or how long it runs, or what
            it reports.
        changes_cost: whether a different value changes the memory, traffic or time of the compiled step. Receipts
            list these settings. They show the model's shape, the mesh and the batch separately.
        was: its dotted name in earlier versions, which is still read.
        values_were: values of earlier versions, which are still read, each with the present one that is used in its
            place and what differs by it.
    """
    meaning = Meaning(paper, changes_run, changes_cost, was, values_were)
    return dataclasses.field(default=default, metadata={"meaning": meaning})  # type: ignore[return-value]


def meaning(field: dataclasses.Field[Any]) -> Meaning:
    """The field's `Meaning`; the default `Meaning` for a plain dataclass field."""
    found: Meaning = field.metadata.get("meaning", Meaning())
    return found


def meanings(config: type[Any]) -> Iterator[tuple[str, str, Meaning]]:
    """(section, field, meaning) of every setting of `Config`, in order of declaration."""
    for section, cls in sections(config).items():
        for field in dataclasses.fields(cls):
            yield section, field.name, meaning(field)


def sections(config: type[Any]) -> dict[str, type[Any]]:
    """The sections of `Config` by name, in order of declaration."""
    return {field.name: field.default_factory for field in dataclasses.fields(config)}  # type: ignore[misc]
