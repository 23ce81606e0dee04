"""Scores of a quiz's participants, with the paper's statistics (GPT-3 section 3.9.4, Tables 3.11 and 3.12)."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt3_jax.errors import UserError
from gpt3_jax.evals.results import to_json
from gpt3_jax.probes.quiz import NEUTRAL, SCALE, Key
from gpt3_jax.probes.text_files import parse_object, read
from gpt3_jax.quantities import grid

PAPER_200 = (
    ("control", 86, 83, 90, 3.6),
    ("Small", 76, 72, 80, 4.9),
    ("Medium", 61, 58, 65, 6.0),
    ("Large", 68, 64, 72, 8.7),
    ("XL", 62, 59, 65, 7.5),
    ("2.7B", 62, 58, 65, 7.1),
    ("6.7B", 60, 56, 63, 6.2),
    ("13B", 55, 52, 58, 7.1),
    ("175B", 52, 49, 54, 7.8),
)
"""Articles of about 200 words: accuracy, its 95 % interval, and the share of "I don't know"; per cent."""
PAPER_500 = (("control", 88, 84, 91, None), ("175B", 52, 48, 57, None))
"""Articles of about 500 words."""
FORMAT = "gpt3_jax news answers"


@dataclasses.dataclass(frozen=True)
class Answers:
    """What one participant answered."""

    quiz: str
    participant: str
    answers: tuple[int, ...]
    """1 to 5, as in `SCALE`."""

    def accuracy(self, machine: Sequence[bool]) -> float | None:
        """Right answers of those that are not neutral; None if all are neutral."""
        sure = [(answer, it) for answer, it in zip(self.answers, machine, strict=True) if answer != NEUTRAL]
        return statistics.fmean((answer > NEUTRAL) == it for answer, it in sure) if sure else None


def read_answers(path: str, keys: Mapping[str, Key]) -> Answers:
    """The file that a quiz's page saves.

    Raises:
        UserError: the file is not there, has another form, or is of a quiz without a key.
        RunError: it cannot be read.
    """
    data = parse_object(read(path), path)
    if data.get("format") != FORMAT:
        raise UserError(f"{path} is not a file of answers; expected one that a quiz's page saved")
    quiz, participant, answers = data.get("quiz"), data.get("participant"), data.get("answers")
    if not isinstance(quiz, str) or quiz not in keys:
        raise UserError(f"{path} is of the quiz {quiz!r}, which is not one of this folder: {', '.join(keys)}")
    if not isinstance(participant, str) or not participant:
        raise UserError(f"{path}: participant is {participant!r}; expected text")
    n = len(keys[quiz].machine)
    if not isinstance(answers, list) or len(answers) != n:
        found = f"{len(answers)} answers" if isinstance(answers, list) else "no list of answers"
        raise UserError(f"{path} has {found}; the quiz has {n} articles")
    for place, answer in enumerate(answers, start=1):
        if not isinstance(answer, int) or isinstance(answer, bool) or not 1 <= answer <= len(SCALE):
            raise UserError(f"{path}: answer {place} is {answer!r}; expected 1 to {len(SCALE)}")
    return Answers(quiz, participant, tuple(answers))


@dataclasses.dataclass(frozen=True)
class Row:
    """A model's participants."""

    model: str
    control: bool
    accuracies: tuple[float, ...]
    """Of each participant."""
    all_neutral: int
    """Participants who never guessed; they have no accuracy."""
    dont_know: float
    """Share of the answers that are neutral."""
    t: float | None = None
    """Student's two-sample t-test against the control's participants."""
    p: float | None = None

    @property
    def accuracy(self) -> float | None:
        return statistics.fmean(self.accuracies) if self.accuracies else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean over participants, by Student's t, cut to 0 to 1. How the paper's
        was computed is not known."""
        n = len(self.accuracies)
        if n < 2:
            return None
        from scipy import stats

        mean = statistics.fmean(self.accuracies)
        half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(self.accuracies) / math.sqrt(n)
        return max(0.0, mean - half), min(1.0, mean + half)

    def as_data(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"accuracy": self.accuracy, "interval": self.interval}


@dataclasses.dataclass(frozen=True)
class Scores:
    """All models, the control first."""

    rows: tuple[Row, ...]

    def table(self) -> str:
        """As text, with the paper's table below."""
        lines = []
        for row in self.rows:
            interval = "–" if row.interval is None else f"{100 * row.interval[0]:.0f}–{100 * row.interval[1]:.0f}"
            accuracy = "–" if row.accuracy is None else f"{100 * row.accuracy:.0f}"
            against = "–" if row.t is None or row.p is None else f"{row.t:.1f} ({row.p:.0e})"
            name = f"{row.model} (control)" if row.control else row.model
            n = len(row.accuracies) + row.all_neutral
            lines.append([name, str(n), accuracy, interval, against, f"{100 * row.dont_know:.1f}"])
        head = ["model", "participants", "accuracy, %", "95 %", "t to control (p)", "don't know, %"]
        parts = [grid(lines, head), "  95 %: interval of the mean over participants by Student's t, cut to 0 to 100"]
        if neutral := sum(row.all_neutral for row in self.rows):
            parts.append(f"  {neutral} participants never guessed, and have no accuracy")
        for words, paper in (("200", PAPER_200), ("500", PAPER_500)):
            rows = [[m, str(a), f"{low}–{high}", "–" if d is None else f"{d:.1f}"] for m, a, low, high, d in paper]
            parts.append(f"\n  the paper, articles of about {words} words")
            parts.append(grid(rows, ["model", "accuracy, %", "95 %", "don't know, %"]))
        return "\n".join(parts)

    def to_json(self) -> str:
        return to_json({"format": "gpt3_jax news scores", "models": [row.as_data() for row in self.rows]}, 1) + "\n"


def score(keys: Mapping[str, Key], paths: Sequence[str]) -> Scores:
    """Scores files of answers.

    Raises:
        UserError: a file that is not there or has another form, or of a participant who is there twice.
        RunError: a file cannot be read.
    """
    found: dict[str, list[Answers]] = {quiz: [] for quiz in keys}
    seen: dict[tuple[str, str], str] = {}
    for path in sorted({str(Path(path)): None for path in paths}):
        answers = read_answers(path, keys)
        one = (answers.quiz, answers.participant)
        if one in seen:
            raise UserError(f"{path} is of the same participant as {seen[one]}; leave one of them out")
        seen[one] = path
        found[answers.quiz].append(answers)
    if not seen:
        raise UserError("there are no answers to score; give the files that the quiz's page saved")
    rows = [_row(keys[quiz], answers) for quiz, answers in found.items() if answers]
    # Quizzes of several seeds have several controls; their participants are taken together.
    control = [accuracy for row in rows if row.control for accuracy in row.accuracies]
    return Scores(tuple(_tested(row, control) for row in sorted(rows, key=lambda row: not row.control)))


def _row(key: Key, answers: Sequence[Answers]) -> Row:
    accuracies = [each.accuracy(key.machine) for each in answers]
    known = tuple(each for each in accuracies if each is not None)
    neutral = statistics.fmean(answer == NEUTRAL for each in answers for answer in each.answers)
    return Row(key.model, key.control, known, len(answers) - len(known), neutral)


def _tested(row: Row, control: Sequence[float]) -> Row:
    if row.control or min(len(row.accuracies), len(control)) < 2:
        return row
    from scipy import stats

    test = stats.ttest_ind(control, row.accuracies)
    t, p = float(test.statistic), float(test.pvalue)
    return dataclasses.replace(row, t=t, p=p) if math.isfinite(t) else row
