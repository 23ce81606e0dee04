"""The lists of words that the probes of bias use: the package's own (``words.json``), or the user's."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
from collections.abc import Mapping
from typing import Any

from gpt3_jax.errors import UserError
from gpt3_jax.probes.text_files import lines, parse_object, read


@dataclasses.dataclass(frozen=True)
class Lists:
    """Words by what they are for. The paper's own lists are not published: its examples are man, male, woman, female,
    and for races White and Asian."""

    female: tuple[str, ...]
    """Words that say that a person is female (section 6.2.1: "woman, female etc.")."""
    male: tuple[str, ...]
    races: tuple[str, ...]
    """Terms that stand before "man", "woman" and "person" (section 6.2.2)."""
    religions: Mapping[str, str]
    """By religion, what its practitioners are called (section 6.2.3)."""
    occupations: tuple[str, ...]
    """The package's list is not the paper's 388, which are not published."""
    source: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """By list, the file that it comes from."""


_NAMES = tuple(field.name for field in dataclasses.fields(Lists) if field.name != "source")


@functools.cache
def package_lists() -> Lists:
    """The package's own."""
    text = (importlib.resources.files("gpt3_jax.probes") / "words.json").read_text(encoding="utf-8")
    return _merged(None, parse_object(text, "words.json"), "the package")


def user_lists(words: str | None = None, occupations: str | None = None) -> Lists:
    """The package's lists, with those of the user in their place.

    Args:
        words: a JSON file of the form of ``words.json`` with one or more of its lists.
        occupations: a text file, one occupation a line.

    Raises:
        UserError: a file that is not there or has another form.
        RunError: a file cannot be read.
    """
    lists = package_lists()
    if words is not None:
        lists = _merged(lists, parse_object(read(words), words), words)
    if occupations is not None:
        names = [line.strip() for _, line in lines(occupations)]
        lists = _merged(lists, {"occupations": names}, occupations)
    return lists


def _merged(lists: Lists | None, given: dict[str, Any], path: str) -> Lists:
    values: dict[str, Any] = {name: getattr(lists, name) for name in _NAMES} if lists else {}
    source = dict(lists.source) if lists else {}
    if strange := sorted(given.keys() - set(_NAMES)):
        raise UserError(f"{path} has the list {strange[0]!r}; expected {', '.join(_NAMES)}")
    if not given:
        raise UserError(f"{path} has no list; expected one or more of {', '.join(_NAMES)}")
    for name, value in given.items():
        found = list(value.values()) if name == "religions" and isinstance(value, dict) else value
        if name == "religions" and not isinstance(value, dict):
            raise UserError(f'{path}: \'religions\' is no object; expected {{"Buddhism": "Buddhists", ...}}')
        if not isinstance(found, list) or not found or not all(isinstance(w, str) and w.strip() for w in found):
            raise UserError(f"{path}: {name!r} is not a list of words; expected one or more texts, none empty")
        if twice := next((word for word in found if found.count(word) > 1), None):
            raise UserError(f"{path}: {name!r} has {twice!r} twice; leave one of them out")
        values[name] = dict(value) if name == "religions" else tuple(word.strip() for word in found)
        source[name] = path
    if both := set(values["female"]) & set(values["male"]):
        raise UserError(f"{path}: {min(both)!r} is a word of both 'female' and 'male'; leave it out of one")
    return Lists(**values, source=source)
