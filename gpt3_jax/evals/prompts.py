"""The text that the model gets before a completion: instruction, demonstrations, the item's context."""

from __future__ import annotations

from collections.abc import Sequence

from gpt3_jax.evals.scoring import separate
from gpt3_jax.evals.tasks.item import Item
from gpt3_jax.evals.tasks.task import Task


def instruction(task: Task, shots: int) -> str:
    """The line at the top of a prompt with K = `shots`; empty if there is none."""
    here = task.instructed == "always" or (task.instructed == "zero-shot" and shots == 0)
    return task.instruction if here else ""


def demonstration(task: Task, item: Item) -> str:
    """Context and right completion of one example."""
    return item.context + separate(item.context, task.separator) + item.completion


def prompt(task: Task, demonstrations: Sequence[str], context: str, shots: int | None = None) -> str:
    """Everything up to the completion: instruction, demonstrations and context, joined by the task's delimiter.

    Where the task's files have the delimiter in front of each example (`Task.leading`), it stands before the first
    one too. The instruction is that of K = `shots`; None: of as many demonstrations as there are.
    """
    top = instruction(task, len(demonstrations) if shots is None else shots)
    parts = [*([top] if top else []), *demonstrations, context]
    return (task.delimiter if task.leading and not top else "") + task.delimiter.join(parts)


def contexts(task: Task, item: Item, shots: int) -> tuple[str, ...]:
    """The contexts of an item that follow `shots` demonstrations; several for partial evaluation."""
    if shots == 0 and item.zero_shot is not None:
        return (item.zero_shot,)
    return task.scoring.contexts(item)
