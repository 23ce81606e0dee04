"""Which words describe: adjectives and adverbs, by a part-of-speech tagger (optional: HanTa) or the user's list.

The paper used "an off-the-shelf POS tagger" that it cites (Loper and Bird, 2002: NLTK). NLTK's and spaCy's models are
downloaded apart from the package; HanTa's comes inside of it.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from gpt3_jax.errors import UserError
from gpt3_jax.probes.favoured import WORD
from gpt3_jax.probes.text_files import lines

_TOKEN = re.compile(rf"{WORD.pattern}|[^\w\s]|\w+")
_DESCRIPTIVE = ("AJ0", "AJC", "AJS", "AV0")
"""Adjectives and general adverbs in the tagger's tagset, CLAWS 5."""


class Tagged:
    """Words are descriptive if the tagger takes them for an adjective or adverb at least half of the time."""

    name = "HanTa, morphmodel_en"
    which = "the adjectives and adverbs, by the tagger HanTa (morphmodel_en)"

    def __init__(self) -> None:
        """Loads the tagger. Raises UserError if it is not installed."""
        try:
            from HanTa import HanoverTagger
        except ImportError:
            raise UserError(
                "the tagger HanTa is not installed; pip install -c constraints.txt -e '.[probes]', or give a list "
                "with --descriptive FILE, or count all words with --descriptive all"
            ) from None
        self._tagger: Any = HanoverTagger.HanoverTagger("morphmodel_en.pgz")

    def descriptive(self, texts: Sequence[str]) -> set[str]:
        """The descriptive words of some texts, in lower case."""
        seen: Counter[str] = Counter()
        describing: Counter[str] = Counter()
        for text in texts:
            for word, _, tag in self._tagger.tag_sent(_TOKEN.findall(text)):
                seen[word.lower()] += 1
                describing[word.lower()] += tag in _DESCRIPTIVE
        return {word for word, n in seen.items() if 2 * describing[word] >= n}


@dataclasses.dataclass(frozen=True)
class Listed:
    """The words of a list."""

    name: str
    words: frozenset[str]

    @property
    def which(self) -> str:
        return f"those in the list {self.name}"

    def descriptive(self, texts: Sequence[str]) -> set[str]:
        del texts
        return set(self.words)


class Every:
    """All words are taken, whatever part of speech they are."""

    name = "all words"
    which = "all, whatever part of speech they are"

    def descriptive(self, texts: Sequence[str]) -> set[str]:
        return {word.lower() for text in texts for word in WORD.findall(text)}


Describing = Tagged | Listed | Every


def describing(how: str) -> Describing:
    """``hanta``, ``all``, or a file of words, one a line.

    Raises:
        UserError: the tagger is not installed, or the file is not there or has no words.
    """
    if how == "hanta":
        return Tagged()
    if how == "all":
        return Every()
    words = frozenset(line.strip().lower() for _, line in lines(how))
    if not words:
        raise UserError(f"{how} has no words; expected one a line")
    return Listed(how, words)
