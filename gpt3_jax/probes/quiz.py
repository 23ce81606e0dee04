"""A blind quiz about who wrote an article, as one HTML file that needs no network, and its key.

The page scores itself, so the key is in it, encoded: it is not to be seen at a glance, but whoever means to cheat can
work it out. `news score` uses the key of the file `KEY`, not the page's.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.resources
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt3_jax.errors import UserError
from gpt3_jax.evals.kept import FILE as KEPT
from gpt3_jax.probes.articles import Article
from gpt3_jax.probes.text_files import parse_object, read

KEY = "quizzes.json"
SCALE = (
    "very likely written by a human",
    "more likely written by a human",
    "I don't know",
    "more likely written by a machine",
    "very likely written by a machine",
)
"""The paper's five answers, 1 to 5."""
NEUTRAL = 3
_FORMAT = "gpt3_jax news quizzes"


@dataclasses.dataclass(frozen=True)
class Item:
    """An article of a quiz."""

    title: str
    subtitle: str
    text: str
    machine: bool


@dataclasses.dataclass(frozen=True)
class Quiz:
    """Articles of a model and of humans, in the order in which they are shown."""

    model: str
    control: bool
    items: tuple[Item, ...]

    @property
    def id(self) -> str:
        """Says nothing of the model to who takes the quiz."""
        content = json.dumps([self.model, [dataclasses.astuple(item) for item in self.items]])
        return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:12]

    @property
    def file(self) -> str:
        return f"quiz-{self.id}.html"

    def html(self) -> str:
        """The page."""
        template = (importlib.resources.files("gpt3_jax.probes") / "quiz.html").read_text(encoding="utf-8")
        data = {
            "quiz": self.id,
            "scale": SCALE,
            "items": [{"title": i.title, "subtitle": i.subtitle, "text": i.text} for i in self.items],
            "key": _encoded([item.machine for item in self.items], self.id),
        }
        return template.replace("/*DATA*/", _in_script(data))


def make_quiz(model: str, articles: Sequence[tuple[Article, str]], seed: int, control: bool = False) -> Quiz:
    """A quiz of one model.

    Args:
        articles: each human article, and the model's text for its title.
        seed: decides, with the model's name, which half of the articles are the model's, one more of an odd number, and
            the order: each quiz has its own, so that one does not give away another. How many of the articles that a
            participant of the paper's study saw were the model's is not known.
    """
    order = list(range(len(articles)))
    rng = random.Random(f"{seed} of {len(articles)} by {model}")
    rng.shuffle(order)
    machine = set(order[: (len(order) + 1) // 2])
    rng.shuffle(order)
    items = []
    for place in order:
        article, text = articles[place]
        items.append(
            Item(article.title, article.subtitle, text if place in machine else article.text, place in machine)
        )
    return Quiz(model, control, tuple(items))


def key_to_json(quizzes: Sequence[Quiz], before: Mapping[str, Any]) -> str:
    """The file `KEY`: for each quiz its model and which of its articles are the machine's. Quizzes that were made
    `before` keep their keys: their answers may be on the way.
    """
    found = dict(before) | {
        quiz.id: {
            "model": quiz.model,
            "control": quiz.control,
            "titles": [item.title for item in quiz.items],
            "machine": [item.machine for item in quiz.items],
        }
        for quiz in quizzes
    }
    return json.dumps({"format": _FORMAT, "version": 1, "quizzes": found}, indent=1) + "\n"


@dataclasses.dataclass(frozen=True)
class Key:
    """What is right in a quiz."""

    model: str
    control: bool
    machine: tuple[bool, ...]


def read_key(folder: str) -> dict[str, Key]:
    """The keys by quiz of a folder that `news write` wrote.

    Raises:
        UserError: the file `KEY` is not there or not of its form.
        RunError: it cannot be read.
    """
    path = Path(folder) / KEY
    if not path.exists() and (path.parent / KEPT).exists():
        raise UserError(
            f"{folder} has no {KEY}: gpt3-jax news write has not finished there; the same command again goes on"
        )
    return {quiz: _key(each, path) for quiz, each in _quizzes(path).items()}


def keys_before(folder: Path) -> dict[str, Any]:
    """The quizzes that the file `KEY` of a folder holds; none if it is not there. Raises as `read_key`."""
    path = folder / KEY
    if not path.exists():
        return {}
    found = _quizzes(path)
    for each in found.values():
        _key(each, path)
    return found


def _quizzes(path: Path) -> dict[str, Any]:
    data = parse_object(read(path), str(path))
    quizzes: Any = data.get("quizzes")
    if data.get("format") != _FORMAT or not isinstance(quizzes, dict):
        raise UserError(f"{path} is no key of quizzes; expected the file that gpt3-jax news write made")
    return quizzes


def _key(each: Any, path: Path) -> Key:
    try:
        return Key(str(each["model"]), bool(each["control"]), tuple(map(bool, each["machine"])))
    except (KeyError, TypeError):
        raise UserError(
            f"{path} is damaged; make the quizzes again in another folder, with gpt3-jax news write"
        ) from None


def _encoded(bits: Sequence[bool], quiz: str) -> str:
    """A byte for each bit, which is the parity of the byte and its mask."""
    rng = random.Random(quiz)
    found = bytearray()
    for place, bit in enumerate(bits):
        mask = (ord(quiz[place % len(quiz)]) * 31 + place * 17) % 256
        byte = rng.randrange(256)
        if (byte ^ mask).bit_count() % 2 != bit:
            byte ^= 1 << rng.randrange(8)
        found.append(byte)
    return base64.b64encode(bytes(found)).decode()


def _in_script(data: Any) -> str:
    """JSON that may stand in a script element, whatever texts are in it."""
    text = json.dumps(data)  # ASCII only: line separators and lone surrogates are escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
