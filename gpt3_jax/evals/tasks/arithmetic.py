"""The paper's ten arithmetic tasks (section 3.9.1), and two more of which OpenAI published files."""

from __future__ import annotations

import functools
import operator
import random
from collections.abc import Callable, Mapping

from gpt3_jax.errors import UserError
from gpt3_jax.evals.scoring import Generated
from gpt3_jax.evals.tasks import openai_files
from gpt3_jax.evals.tasks.item import Items
from gpt3_jax.evals.tasks.open_settings import COUNT, GENERATED, LEADING, SEED
from gpt3_jax.evals.tasks.task import Open, Source, Task, Value

_OPERATIONS: Mapping[str, tuple[str, Callable[[int, int], int]]] = {
    "addition": ("plus", operator.add),
    "subtraction": ("minus", operator.sub),
    "multiplication": ("times", operator.mul),
}
_DIGITS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_SYMBOLS: Mapping[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_BRACKETS = Open(
    "brackets",
    "The text of section 3.9.1 brackets the last two numbers, its Figure G.42 and OpenAI's file the first two; the "
    "default follows the file.",
    ("first", "last"),
)


def _question(what: str, answer: int) -> openai_files.Row:
    return f"\n\nQ: What is {what}?\n\nA:", f" {answer}"


def _pair(name: str, draw: random.Random, __: Mapping[str, Value]) -> openai_files.Row:
    """Both operands uniform from 0 up, so that most but not all have as many digits as the task's name says."""
    digits, _, operation = name.split("_")
    word, apply = _OPERATIONS[operation]
    a, b = (_uniform(draw, 10 ** _DIGITS[digits]) for _ in range(2))
    return _question(f"{a} {word} {b}", apply(a, b))


def _three_ops(_: str, draw: random.Random, options: Mapping[str, Value]) -> openai_files.Row:
    a, b, c = (1 + _uniform(draw, 9) for _ in range(3))
    first, second = (list(_SYMBOLS)[_uniform(draw, 3)] for _ in range(2))
    if options["brackets"] == "first":
        return _question(f"({a} {first} {b}) {second} {c}", _SYMBOLS[second](_SYMBOLS[first](a, b), c))
    return _question(f"{a} {first} ({b} {second} {c})", _SYMBOLS[first](a, _SYMBOLS[second](b, c)))


def _digit_sum(_: str, draw: random.Random, __: Mapping[str, Value]) -> openai_files.Row:
    n = _uniform(draw, 10_000)
    return _question(f"the sum of the digits of the number {n}", sum(map(int, str(n))))


def _uniform(draw: random.Random, below: int) -> int:
    return int(draw.random() * below)  # the same in every version of Python, as randrange is not


_Row = Callable[[str, random.Random, Mapping[str, Value]], openai_files.Row]


def rows(name: str, make: _Row, options: Mapping[str, Value]) -> list[openai_files.Row]:
    """As many different rows as `options` says, in the format of OpenAI's files."""
    wanted, seed = int(options["items"]), int(options["item_seed"])
    draw = random.Random(f"{name}\n{seed}")
    found: dict[str, str] = {}
    for _ in range(50 * wanted):
        if len(found) == wanted:
            return list(found.items())
        context, completion = make(name, draw, options)
        found.setdefault(context, completion)
    raise UserError(f"{name}.items is {wanted}; there are not that many different questions, ask for fewer")


def _load(name: str, make: _Row, _: Source, options: Mapping[str, Value]) -> Items:
    generated = rows(name, make, options)
    source = f"{name}, generated from seed {options['item_seed']}"
    return openai_files.items(generated, source, *openai_files.frame(generated))


def _task(name: str, row: str | None, make: _Row) -> Task:
    three = make is _three_ops
    return Task(
        name=name,
        row=row,
        load=functools.partial(_load, name, make),
        scoring=Generated(max_tokens=16),
        metrics=("exact match",),
        shots=50,
        delimiter="\n\n",
        leading=True,
        options={"items": 2000, "item_seed": 0} | ({"brackets": "first"} if three else {}),
        open=(*GENERATED, LEADING, COUNT, SEED, *((_BRACKETS,) if three else ())),
        splits=("itself", "itself"),
        about="three single digits, two operations" if three else name.replace("_", " "),
    )


TASKS = tuple(
    _task(name, row, make)
    for name, row, make in (
        ("two_digit_addition", "2D+", _pair),
        ("two_digit_subtraction", "2D-", _pair),
        ("three_digit_addition", "3D+", _pair),
        ("three_digit_subtraction", "3D-", _pair),
        ("four_digit_addition", "4D+", _pair),
        ("four_digit_subtraction", "4D-", _pair),
        ("five_digit_addition", "5D+", _pair),
        ("five_digit_subtraction", "5D-", _pair),
        ("two_digit_multiplication", "2Dx", _pair),
        ("single_digit_three_ops", "1DC", _three_ops),
        ("six_digit_addition", None, _pair),
        ("six_digit_subtraction", None, _pair),
        ("sum_of_digits", None, _digit_sum),
    )
)
"""The last three are not in the paper."""
