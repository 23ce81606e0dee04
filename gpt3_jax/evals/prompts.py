"""The text that the model gets before a completion: instruction, demonstrations, the item's context."""

from __future__ import annotations

from collections.abc import Sequence

from gpt3_jax.evals.scoring import separate
from gpt3_jax.evals.tasks.item import Item
from gpt3_jax.evals.tasks.task import Task


def instruction(task: Task, shots: int) -> str:
    """The line at the top of a prompt with K = `shots`; empty if there is none."""
    here = task.instructed == "always" or task.instructed == ("few-shot" if shots else "zero-shot")
    return task.instruction if here else ""


def demonstration(task: Task, item: Item) -> str:
    """Context and right completion of one example."""
    return _headed(task, item.context) + separate(item.context, task.separator) + item.completion


def prompt(task: Task, demonstrations: Sequence[str], context: str, shots: int | None = None) -> str:
    """Everything up to the completion: instruction, demonstrations and context, joined by the task's delimiter.

    Where the task's files have the delimiter in front of each example (`Task.leading`), it stands before the first
    one too. The instruction is that of K = `shots`; None: of as many demonstrations as there are.
    """
    top = instruction(task, len(demonstrations) if shots is None else shots)
    examples = task.delimiter.join([*demonstrations, context])
    if top:
        return top + _below(task) + examples
    return (task.delimiter if task.leading else "") + examples


def _below(task: Task) -> str:
    return task.delimiter if task.below_instruction is None else task.below_instruction


def _headed(task: Task, context: str) -> str:
    """A context below the instruction, where each example has its own."""
    return task.instruction + _below(task) + context if task.instructed == "each" else context


def contexts(task: Task, item: Item, shots: int) -> tuple[str, ...]:
    """The contexts of an item that follow `shots` demonstrations; several for partial evaluation."""
    if shots == 0 and item.zero_shot is not None:
        return (item.zero_shot,)
    return tuple(_headed(task, context) for context in task.scoring.contexts(item))
