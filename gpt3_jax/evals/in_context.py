"""How well a model learns in context: whether it is right about a rule that it knows only from K examples or from an
instruction (GPT-3 Figure 1.2), on words and rules that are not in its training text.

Unlike a task of the paper, each item has a rule, and so demonstrations and an instruction, of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import get_args

import numpy as np

from gpt3_jax.data.in_context.documents import Example, Kind, Words, answered, asked, draw_rule, heading, line
from gpt3_jax.data.in_context.words import Split
from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.errors import RunError
from gpt3_jax.evals.engine import Engine
from gpt3_jax.evals.requests import Continuation, Request, Score

SHOTS = (0, 1, 2, 4, 8, 16)
"""K: examples in front of the question."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Items of one kind of rule."""

    kind: Kind
    held_out: bool
    about: str

    @property
    def name(self) -> str:
        return f"{self.kind}{'-held-out' if self.held_out else ''}"


GROUPS = (
    Group("single", False, "rules of one step, all in training"),
    Group("composed", False, "rules of two or three steps, composed as in training"),
    Group("composed", True, "rules of two or three steps, composed as never in training"),
    Group("table", True, "look-up in a random table"),
    Group("function", False, "functions of digits, as in training"),
    Group("function", True, "functions of digits, never in training"),
    Group("base", False, "addition in bases of training"),
    Group("base", True, "addition in bases never in training"),
)
"""Words are never in training."""


@dataclasses.dataclass(frozen=True)
class Item:
    """A question, examples of its rule, and an instruction that says the rule."""

    instruction: str
    examples: tuple[Example, ...]
    question: str
    answer: str
    effect: str = ""
    """The same for items of rules that do the same."""


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """How often one prompt form was answered right."""

    group: str
    instructed: bool
    """Whether the instruction stands at the top."""
    shuffled: bool
    """Whether the examples are those of other rules."""
    shots: int
    right: int
    items: int
    dropped: int
    """Examples left out, over all items, because the context could not hold them."""


def draw_items(group: Group, count: int, seed: int, split: Split = "test") -> list[Item]:
    """`count` items, as a function of the arguments, with words and held-out rules of the split. No example has
    the item's question, but in a look-up, where only an example can say the answer."""
    rng = np.random.default_rng((seed, get_args(Split).index(split)))
    items = []
    for _ in range(count):
        rule = draw_rule(rng, group.kind, split if group.held_out else "training")
        question, answer = rule.examples(rng, 1, split)[0]
        examples: list[Example] = []
        while len(examples) < max(SHOTS):
            drawn = rule.examples(rng, max(SHOTS), split)
            examples += [each for each in drawn if group.kind == "table" or each[0] != question]
        effect = rule.effect if isinstance(rule, Words) else rule.instruction
        items.append(Item(rule.instruction, tuple(examples[: max(SHOTS)]), question, answer, effect))
    return items


def with_shuffled_examples(items: Sequence[Item]) -> list[Item]:
    """The same questions, with examples of other items whose rules are others. What a model then does better than with
    no example is not due to the rule. Empty if all items have the same rule."""
    if len({item.effect for item in items}) < 2:
        return []
    mixed = []
    for number, item in enumerate(items):
        others = (other for other in itertools.cycle([*items[number + 1 :], *items[:number]]))
        others = (other for other in others if other.effect != item.effect)
        examples = tuple(next(others).examples[k] for k in range(len(item.examples)))
        mixed.append(dataclasses.replace(item, examples=examples))
    return mixed


def prompt(item: Item, shots: int, instructed: bool) -> str:
    """The prompt, up to the answer."""
    text = heading(item.instruction if instructed else "")
    return text + "".join(itertools.starmap(line, item.examples[:shots])) + asked(item.question)


def evaluate(engine: Engine, groups: Sequence[Group], count: int, seed: int, split: Split = "test") -> list[Accuracy]:
    """Accuracies with and without the instruction for each K, and without it on shuffled examples.

    An answer is right if greedy decoding gives exactly it and the end of the line. It does so if each of its tokens is
    the likeliest one after those before it, so one forward pass tells.

    Args:
        engine: where a prompt and its answer are longer than the model's context, the first examples are left out.
        count: items of a group.
        seed: of the items.
        split: of the items' words and held-out rules. Compare recipes by "validation".
    """
    forms: list[tuple[Group, bool, bool, int]] = []
    requests: list[Request] = []
    dropped: list[int] = []
    for group in groups:
        plain = draw_items(group, count, seed, split)
        for instructed, shuffled in ((False, False), (True, False), (False, True)):
            for shots in SHOTS if not shuffled else [k for k in SHOTS if k]:
                for item in with_shuffled_examples(plain) if shuffled else plain:
                    request, left_out = _request(engine.tokenizer, item, shots, instructed, engine.config.n_ctx)
                    forms.append((group, instructed, shuffled, shots))
                    requests.append(request)
                    dropped.append(left_out)
    right = [False] * len(requests)
    for number, answer in engine.answer(requests):
        if not isinstance(answer, Score):
            raise RunError(f"the engine answered a continuation with {type(answer).__name__}")
        right[number] = answer.greedy
    return [
        Accuracy(
            group.name,
            instructed,
            shuffled,
            shots,
            sum(right[n] for n in numbers),
            len(numbers),
            sum(dropped[n] for n in numbers),
        )
        for (group, instructed, shuffled, shots), numbers in _by_form(forms).items()
    ]


def _by_form(forms: list[tuple[Group, bool, bool, int]]) -> dict[tuple[Group, bool, bool, int], list[int]]:
    found: dict[tuple[Group, bool, bool, int], list[int]] = {}
    for number, form in enumerate(forms):
        found.setdefault(form, []).append(number)
    return found


def _request(tokenizer: Tokenizer, item: Item, shots: int, instructed: bool, n_ctx: int) -> tuple[Continuation, int]:
    answer = answered(item.answer)
    for left_out in range(shots + 1):
        kept = dataclasses.replace(item, examples=item.examples[left_out:])
        context = prompt(kept, shots - left_out, instructed)
        if len(tokenizer.encode(context + answer)) <= n_ctx:
            return Continuation(context, answer), left_out
    raise RunError(f"the question {item.question!r} does not fit a context of {n_ctx} tokens")
