"""What a setting means to the rest of the project, said where the setting is declared.

The recipe's quantities (`gpt3_jax.train.recipe`), what a resumed run may change (`gpt3_jax.train.checkpoint.resume`),
what a receipt lists (`gpt3_jax.plan.receipt`) and the names of earlier versions derive from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Paper:
    """Where the GPT-3 paper, or what it builds on, has a setting's value."""

    source: str
    published: bool = True
    """Whether the value is published. If not, any value agrees with the paper, unless `gpt3_jax.train.recipe` knows
    what the paper excludes."""
    between: tuple[int, int] | None = None
    """The lowest and the highest value, where the paper gives no more than these."""


@dataclasses.dataclass(frozen=True)
class Meaning:
    """The arguments of `setting`."""

    paper: Paper | None = None
    changes_run: bool = True
    changes_cost: bool = False
    was: str = ""


def setting(
    default: T, *, paper: Paper | None = None, changes_run: bool = True, changes_cost: bool = False, was: str = ""
) -> T:
    """A field of a section, with what it means elsewhere.

    Args:
        default: its default value.
        paper: where the paper has it; None: it is no part of the recipe.
        changes_run: whether another value changes what a run computes, by more than rounding. A resumed run refuses
            that. False for what changes where, how fast or how long it runs, or what it reports.
        changes_cost: whether another value changes memory, traffic or time of the compiled step. Receipts list these;
            the model's shape, the mesh and the batch they show for themselves.
        was: its dotted name in earlier versions, which is still read.
    """
    meaning = Meaning(paper, changes_run, changes_cost, was)
    return dataclasses.field(default=default, metadata={"meaning": meaning})  # type: ignore[return-value]


def meaning(field: dataclasses.Field[Any]) -> Meaning:
    """What the field's `setting` said; the defaults for a plain field."""
    found: Meaning = field.metadata.get("meaning", Meaning())
    return found


def meanings(config: type[Any]) -> Iterator[tuple[str, str, Meaning]]:
    """(section, field, meaning) of every setting of `Config`, in its order."""
    for section, cls in sections(config).items():
        for field in dataclasses.fields(cls):
            yield section, field.name, meaning(field)


def sections(config: type[Any]) -> dict[str, type[Any]]:
    """The sections of `Config` by name, in its order."""
    return {field.name: field.default_factory for field in dataclasses.fields(config)}  # type: ignore[misc]
