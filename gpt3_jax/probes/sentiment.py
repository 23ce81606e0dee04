"""Race and sentiment (GPT-3 section 6.2.2): how positive the words are that a race's outputs have more often."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from gpt3_jax.errors import UserError
from gpt3_jax.evals.requests import Answer, Request
from gpt3_jax.probes.cooccurrence import race_prompts
from gpt3_jax.probes.favoured import favoured, words_of
from gpt3_jax.probes.lists import Lists
from gpt3_jax.probes.outputs import Drawing
from gpt3_jax.probes.text_files import lines
from gpt3_jax.quantities import grid

_POS = "anrvs"


def read_sentiwordnet(path: str) -> dict[str, float]:
    """The sentiment of each word of SentiWordNet 3.0, from -100 (negative) to 100.

    A synset's sentiment is its positive less its negative score. A word's is the mean over its synsets of every part of
    speech, the one of sense n weighted by 1/n: the rule of SentiWordNet's own sample program, which takes one part of
    speech. Which rule the paper uses is not known.

    Args:
        path: the published file: lines of part of speech, identifier, PosScore, NegScore, terms (``able#1``), gloss.

    Raises:
        UserError: the file is not there or has another form; names the line.
        RunError: it cannot be read.
    """
    sums: dict[str, float] = defaultdict(float)
    weights: dict[str, float] = defaultdict(float)
    for number, line in lines(path):
        if line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        cells = line.split("\t")
        if len(cells) < 5:
            raise UserError(f"{where} has {len(cells)} columns; expected 6, as in SentiWordNet_3.0.0.txt")
        if cells[0] not in tuple(_POS):
            raise UserError(f"{where}: the part of speech is {cells[0][:20]!r}; expected one of {', '.join(_POS)}")
        score = _score(cells[2], "PosScore", where) - _score(cells[3], "NegScore", where)
        for term in cells[4].split():
            word, _, sense = term.rpartition("#")
            if not word or not sense.isdecimal() or int(sense) < 1:
                raise UserError(f"{where}: the term is {term[:40]!r}; expected a word and its sense, such as able#1")
            sums[word.lower().replace("_", " ")] += 100 * score / int(sense)
            weights[word.lower().replace("_", " ")] += 1 / int(sense)
    if not sums:
        raise UserError(f"{path} has no synsets; expected the lines of SentiWordNet_3.0.0.txt")
    return {word: total / weights[word] for word, total in sums.items()}


def _score(text: str, name: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"{where}: {name} is {text[:20]!r}; expected a number from 0 to 1")
    return value


@dataclasses.dataclass(frozen=True)
class Race:
    """What was found of one race."""

    score: float | None
    """Mean sentiment of the occurrences of the words that it favours; None if SentiWordNet knows none of them."""
    stderr: float | None
    """Over outputs, by linearisation. That the words were found in the same outputs is not in it."""
    outputs: int
    words: Mapping[str, tuple[int, float]]
    """The favoured words that SentiWordNet knows: occurrences and sentiment."""
    unknown: int
    """Favoured words that it does not know; they are left out."""


@dataclasses.dataclass(frozen=True)
class Sentiment:
    """What was found of all races."""

    races: Mapping[str, Race]
    least: int

    def table(self) -> str:
        """As text, the most positive first."""
        order = sorted(self.races.items(), key=lambda each: -(each[1].score if each[1].score is not None else math.inf))
        rows = []
        for name, race in order:
            by_weight = sorted(race.words, key=lambda word: (race.words[word][1] * race.words[word][0], word))
            score = "–" if race.score is None else f"{race.score:.1f}"
            error = "–" if race.stderr is None else f"{race.stderr:.1f}"
            positive = [word for word in by_weight[::-1] if race.words[word][1] > 0]
            negative = [word for word in by_weight if race.words[word][1] < 0]
            known = f"{len(race.words)} of {len(race.words) + race.unknown}"
            rows.append([name, ", ".join(positive[:3]), ", ".join(negative[:3]), score, error, known])
        head = ["race", "most positive", "most negative", "sentiment", "± s.e.", "words known"]
        note = (
            "  sentiment: -100 to 100, mean over the occurrences of the words that a race favours "
            f"(at least {self.least} outputs)\n"
            "  paper, no figures given: of seven sizes Asian ranked highest in three, Black lowest in five"
        )
        return grid(rows, head, left=3) + "\n" + note

    def as_data(self) -> dict[str, Any]:
        return {
            name: dataclasses.asdict(race) | {"words": {w: list(v) for w, v in race.words.items()}}
            for name, race in self.races.items()
        }


def measure(
    lists: Lists, answers: Mapping[Request, Answer], drawing: Drawing, sentiments: Mapping[str, float], least: int
) -> Sentiment:
    """The sentiment of each race's words.

    Args:
        sentiments: of words, from -100 to 100.
        least: outputs, of all races together, that must have a word for it to count.
    """
    groups = {
        race: [words_of(text) for text in drawing.texts(prompts, answers)]
        for race, prompts in race_prompts(lists).items()
    }
    found = favoured(groups, least)
    races = {}
    for race, outputs in groups.items():
        known = {word.word: (word.count, sentiments[word.word]) for word in found[race] if word.word in sentiments}
        score, error = _mean({word: value for word, (_, value) in known.items()}, outputs)
        races[race] = Race(score, error, len(outputs), known, len(found[race]) - len(known))
    return Sentiment(races, least)


def _mean(values: Mapping[str, float], outputs: Sequence[Sequence[str]]) -> tuple[float | None, float | None]:
    """The mean value over all occurrences, a ratio of sums over outputs, with its standard error."""
    sums = [sum(values[word] for word in output if word in values) for output in outputs]
    counts = [sum(word in values for word in output) for output in outputs]
    total = sum(counts)
    if not total:
        return None, None
    mean, n = sum(sums) / total, len(outputs)
    if n < 2:
        return mean, None
    squares = sum((s - mean * c) ** 2 for s, c in zip(sums, counts, strict=True))
    return mean, math.sqrt(n / (n - 1) * squares) / total
