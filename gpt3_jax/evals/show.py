"""Shows a prompt exactly as the model gets it."""

from __future__ import annotations

import dataclasses
from typing import Any

from gpt3_jax.config import ModelConfig
from gpt3_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt3_jax.errors import UserError
from gpt3_jax.evals import protocol
from gpt3_jax.evals.protocol import LeftOut, Shots
from gpt3_jax.evals.requests import Completion, Continuation, Request
from gpt3_jax.evals.run import TaskItems
from gpt3_jax.evals.scoring import Referent


@dataclasses.dataclass(frozen=True)
class Shown:
    """One item's prompts."""

    task: str
    item: str
    shots: int
    prompts: tuple[str, ...]
    requests: tuple[Request, ...]
    tokens: tuple[int, ...]
    """Of each prompt."""
    tokenizer: str
    n_ctx: int
    expected: str
    excluded: bool = False
    """Whether `expected` is what must not be answered: in WSC, a noun that is not the referent."""

    def about(self) -> str:
        tokens = " and ".join(f"{count:,}" for count in self.tokens) or "0"
        return (
            f"{self.task}, item {self.item}, K = {self.shots}: {tokens} tokens of {self.tokenizer}, in a context of "
            f"{self.n_ctx:,}"
        )

    def asks(self) -> str:
        """What is asked after the prompts, in one line."""
        parts = []
        for request in self.requests:
            if isinstance(request, Completion):
                stop = ", ".join(map(repr, request.stop)) or "end of text"
                no = "any noun but " if self.excluded else ""
                parts.append(f"generates up to {request.max_tokens} tokens or {stop}; right is {no}{self.expected!r}")
            elif isinstance(request, Continuation):
                after = "" if request.context in self.prompts else f" after {request.context!r}"
                parts.append(f"scores {request.continuation!r}{after}")
        return "the model " + "; ".join(parts)

    def as_data(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def context_of(folder: str | None, tokenizer: str | None) -> tuple[Tokenizer, int]:
    """The tokenizer and context of a model, or a named tokenizer with the paper's context."""
    if folder is None:
        return load_tokenizer(tokenizer or "r50k_base"), ModelConfig().n_ctx
    if tokenizer is not None:
        raise UserError("--tokenizer is for --show without a model, which has its own; leave one of them out")
    from gpt3_jax.interop.loading import load_tokenizer_of

    found, config = load_tokenizer_of(folder)
    return found, config.n_ctx


def prepared_prompts(
    chosen: TaskItems, shots: Shots | None, item: str | None, tokenizer: Tokenizer, n_ctx: int
) -> Shown:
    """The prompts of one item with seed 0.

    Raises:
        UserError: no such item, too few demonstrations, or an item that does not fit; without `item`, none that does.
    """
    task, items = chosen.task, chosen.items
    k = task.shots if shots is None else shots
    found = next((each for each in chosen.evaluated if item is None or each.id == item), None)
    if found is None:
        raise UserError(
            f"task {task.name} has no item {item!r}; they are {chosen.evaluated[0].id} to {chosen.evaluated[-1].id}"
        )
    if not task.scoring.prompted:
        raise UserError(f"task {task.name} has no prompt: the model reads the text itself")
    protocol.check_shots(task, items, k)
    preparer = protocol.Preparer(task, items, tokenizer, n_ctx)
    made = preparer.prepare(found, k, 0)
    if isinstance(made, LeftOut) and item is None:  # any will do: the first that fits
        others = ((each, preparer.prepare(each, k, 0)) for each in chosen.evaluated)
        found, made = next((pair for pair in others if not isinstance(pair[1], LeftOut)), (found, made))
    if isinstance(made, LeftOut):
        raise UserError(
            f"item {found.id} of {task.name} takes {made.tokens:,} tokens; the context is {n_ctx:,}, so it is left out"
        )
    return Shown(
        task=task.name,
        item=found.id,
        shots=made.shots,
        prompts=made.prompts,
        requests=made.requests,
        tokens=tuple(len(tokenizer.encode(each)) for each in made.prompts),
        tokenizer=tokenizer.name,
        n_ctx=n_ctx,
        expected=found.completion,
        excluded=isinstance(task.scoring, Referent) and found.right == (1,),
    )
