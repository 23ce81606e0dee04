"""The paper's five word tasks (section 3.9.2): a word is to be found from its letters."""

from __future__ import annotations

import functools
import os
import random
import re
from collections.abc import Callable, Mapping

from gpt3_jax.errors import UserError
from gpt3_jax.evals.scoring import Generated
from gpt3_jax.evals.tasks import openai_files
from gpt3_jax.evals.tasks.item import Items
from gpt3_jax.evals.tasks.open_settings import COUNT, GENERATED
from gpt3_jax.evals.tasks.rows import read_text
from gpt3_jax.evals.tasks.task import Open, Source, Task, Value

INSTRUCTION = "Please unscramble the letters into a word, and write that word:"
LISTS = ("/usr/share/dict/words", "/usr/share/dict/american-english", "/usr/dict/words")
"""Where systems keep a list of words."""
_LENGTHS = (5, 14)
"""Section 3.9.2: more than 4 and fewer than 15 characters. OpenAI's files hold words of 5 or 6 to 15."""
_BETWEEN = " ./!"
"""What OpenAI's file inserts between letters."""
_INSTRUCTED = Open(
    "instructed",
    "Appendix G shows the instruction once at the top of a prompt; that it stands there with any K is inferred, not "
    "said.",
    ("always", "zero-shot", "never"),
)
_WORDS = Open(
    "item_seed",
    "The paper takes the 10,000 most frequent words of a list that it cites; ours are drawn from the given list with "
    "this seed.",
    least=0,
)


def _draw(generator: random.Random, below: int) -> int:
    return int(generator.random() * below)


def _shuffled(letters: str, generator: random.Random) -> str:
    left, out = list(letters), []
    while left:
        out.append(left.pop(_draw(generator, len(left))))
    return "".join(out)


def _cycle(word: str, generator: random.Random) -> str | None:
    """Rotated by 1 to n - 1 letters."""
    n = 1 + _draw(generator, len(word) - 1)
    turned = word[n:] + word[:n]
    return turned if turned != word else None


def _anagram(fixed: int, word: str, generator: random.Random) -> str | None:
    """All letters shuffled but the first and last `fixed`."""
    inner = word[fixed:-fixed]
    for _ in range(20):
        mixed = _shuffled(inner, generator)
        if mixed != inner:
            return word[:fixed] + mixed + word[-fixed:]
    return None


def _insert(word: str, generator: random.Random) -> str | None:
    """One space or sign between each letter and the next."""
    return word[0] + "".join(_BETWEEN[_draw(generator, len(_BETWEEN))] + letter for letter in word[1:])


def _reverse(word: str, _: random.Random) -> str | None:
    return word[::-1] if word[::-1] != word else None


_Scramble = Callable[[str, random.Random], str | None]


def known_words(source: Source) -> tuple[list[str], str]:
    """The lower-case words of a fitting length, in the order of the list, and the list's path.

    Raises:
        UserError: there is no list, or no word in it that fits.
    """
    path = source.words or next((path for path in LISTS if os.path.exists(path)), None)
    if path is None:
        raise UserError(
            f"this machine has no list of words ({', '.join(LISTS)}); give one with --words FILE (in training "
            "evals.words), one word a line, or OpenAI's own file as the task: PATH/reversed_words.jsonl.gz"
        )
    least, most = _LENGTHS
    fitting = re.compile(rf"[a-z]{{{least},{most}}}")
    words = list(dict.fromkeys(line for line in map(str.strip, read_text(path).split("\n")) if fitting.fullmatch(line)))
    if not words:
        raise UserError(f"{path} has no word of {least} to {most} lower-case letters a to z; expected one word a line")
    return words, path


def _missing(source: Source, _: Mapping[str, Value]) -> str | None:
    try:
        known_words(source)
    except UserError as error:
        return str(error)
    return None


def rows(name: str, scramble: _Scramble, words: list[str], options: Mapping[str, Value]) -> list[openai_files.Row]:
    """Rows in the format of OpenAI's files, one for each word that can be scrambled, at most as many as `options`
    says."""
    generator = random.Random(f"words\n{options['item_seed']}")  # all five tasks take the same words
    wanted = int(options["items"])
    order, taken = list(words), list[openai_files.Row]()
    own = random.Random(f"{name}\n{options['item_seed']}")
    while order and len(taken) < wanted:
        k = _draw(generator, len(order))
        order[k], order[-1] = order[-1], order[k]
        word = order.pop()
        scrambled = scramble(word, own)
        if scrambled is not None:
            taken.append((f"\n{scrambled} =", f" {word}"))
    return taken


def _load(name: str, scramble: _Scramble, source: Source, options: Mapping[str, Value]) -> Items:
    words, path = known_words(source)
    found = rows(name, scramble, words, options)
    if not found:
        raise UserError(f"{path} has no word that {name} could scramble; give a longer list")
    return openai_files.items(found, f"{path}, seed {options['item_seed']}", *openai_files.frame(found))


def _task(name: str, row: str, scramble: _Scramble, about: str) -> Task:
    return Task(
        name=name,
        row=row,
        load=functools.partial(_load, name, scramble),
        missing=_missing,
        scoring=Generated(max_tokens=24),
        metrics=("exact match",),
        shots=100,
        delimiter="\n",
        leading=True,
        instruction=INSTRUCTION,
        instructed="always",
        options={"items": 10_000, "item_seed": 0},
        open=(*GENERATED, _INSTRUCTED, COUNT, _WORDS),
        splits=("itself", "itself"),
        about=about,
    )


TASKS = (
    _task("cycle_letters_in_word", "Cycled Letters", _cycle, "a word whose letters are rotated"),
    _task("mid_word_1_anagrams", "Anagrams 1", functools.partial(_anagram, 1), "all but first and last letter mixed"),
    _task("mid_word_2_anagrams", "Anagrams 2", functools.partial(_anagram, 2), "all but first and last two mixed"),
    _task("random_insertion_in_word", "Symbol Insertion", _insert, "a sign or space between the letters"),
    _task("reversed_words", "Reversed Words", _reverse, "a word backwards"),
)
