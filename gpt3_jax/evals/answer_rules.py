"""When a free answer is right: each data set's published scoring rule.

All scores are from 0 to 1. Each rule follows the data set's own script: SQuAD 2.0 (``evaluate-v2.0.py``; for
NaturalQuestions and WebQuestions too, as in Roberts et al. 2020), TriviaQA (``triviaqa_evaluation.py``), CoQA
(``evaluate-v1.0.py``), QuAC (``scorer.py``) and DROP (``drop_eval.py``). What the scripts do not know is how to read a
model's text: a model says that a question has no answer by a text of the task's choosing, and several spans by a text
with something between them.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

QUAC_AGREEMENT = 0.4
"""QuAC's script leaves out questions on which people agree less than this."""
_PUNCTUATION = frozenset(string.punctuation)
_TRIVIA_PUNCTUATION = _PUNCTUATION | frozenset("‘’´`")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def squad_normalised(text: str) -> str:
    """Lower case, without punctuation (nothing in its place), articles and superfluous white space."""
    bare = "".join(each for each in text.lower() if each not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def trivia_normalised(text: str) -> str:
    """As SQuAD's, but a space takes the place of punctuation, and four more quotation marks are punctuation."""
    spaced = "".join(" " if each in _TRIVIA_PUNCTUATION else each for each in text.lower())
    return " ".join(_ARTICLES.sub(" ", spaced).split())


def trivia_exact(text: str, answers: Sequence[str]) -> float:
    """Whether the text is one of the aliases after TriviaQA's normalisation."""
    return float(trivia_normalised(text) in set(map(trivia_normalised, answers)))


def squad_exact(text: str, answers: Sequence[str], unanswerable: str = "") -> float:
    """Whether the text is one of the answers after SQuAD's normalisation.

    Args:
        unanswerable: the text that says that there is no answer, in `text` and in `answers`. Only it is right where
            there is none: an empty text says nothing. Empty: all questions have an answer.
    """
    references = _references(answers, unanswerable)
    if unanswerable and references == [""]:
        return float(_says(text, unanswerable))
    return float(squad_normalised(_without(text, unanswerable)) in references)


def squad_f1(text: str, answers: Sequence[str], unanswerable: str = "") -> float:
    """The highest F1 of words over the answers; `unanswerable` as in `squad_exact`. Where either has no words, 1 if
    neither has, else 0."""
    references = _references(answers, unanswerable)
    if unanswerable and references == [""]:
        return float(_says(text, unanswerable))
    found = _without(text, unanswerable)
    return max(_f1(found, answer) for answer in references)


def coqa_f1(text: str, answers: Sequence[str]) -> float:
    """F1 of words as CoQA's script has it: each reference is left out in turn, the highest F1 over the others is taken,
    and these are averaged. So a model is compared with as many people as a person is."""
    return _each_left_out([_f1(text, answer) for answer in answers])


def quac_f1(text: str, answers: Sequence[str], unanswerable: str) -> float:
    """F1 of words as QuAC's script has it: as CoQA's, over `quac_references`."""
    says_none, bare = _says(text, unanswerable), squad_normalised(unanswerable)
    scores = []
    for answer in quac_references(answers, unanswerable):
        none = squad_normalised(answer) == bare
        scores.append(float(says_none) if none else 0.0 if says_none else _overlap(text, answer))
    return _each_left_out(scores)


def quac_references(answers: Sequence[str], unanswerable: str) -> list[str]:
    """What people answered: that there is no answer, if at least half of them say so; else what the others say."""
    spans = [answer for answer in answers if not _says(answer, unanswerable)]
    return spans if 2 * len(spans) > len(answers) else [unanswerable]


def quac_human_f1(answers: Sequence[str], unanswerable: str) -> float:
    """How far people agree: the mean over them of the highest F1 with another; 1 if only one is left."""
    references = quac_references(answers, unanswerable)
    if len(references) == 1:
        return 1.0
    best = [
        max(_overlap(one, other) for m, other in enumerate(references) if m != n) for n, one in enumerate(references)
    ]
    return sum(best) / len(best)


def drop_scores(text: str, answers: Sequence[Sequence[str]], joiner: str = "") -> tuple[float, float]:
    """Exact match and F1 as DROP's script has them, each the highest over the answers.

    Args:
        answers: each is one or several spans.
        joiner: what stands between several spans in a text. The text is read as one span and, if the joiner is in it,
            also as several; the reading that agrees better counts. Empty: as one span only.
    """
    readings: list[tuple[str, ...]] = [(text,)]
    if joiner and joiner in text:
        readings.append(tuple(span for span in text.split(joiner) if span.strip()) or (text,))
    found = [_drop(reading, spans) for reading in readings for spans in answers if spans and spans[0].strip()]
    return max((exact for exact, _ in found), default=0.0), max((f1 for _, f1 in found), default=0.0)


def drop_normalised(text: str) -> str:
    """Word by word, cut at spaces and hyphens: lower case, numbers as floats (12 and 12.0 are the same), other words
    without punctuation, no articles."""
    words = (_drop_word(word) for word in re.split(" |-", text.lower()))
    return " ".join(word for word in words if word)


def _drop_word(word: str) -> str:
    bare = word if _is_number(word) else "".join(each for each in word if each not in _PUNCTUATION)
    bare = str(float(bare)) if _is_number(bare) else bare
    return " ".join(_ARTICLES.sub(" ", bare).split())


def _drop(spans: Sequence[str], answer: Sequence[str]) -> tuple[float, float]:
    """Spans are paired so that the sum of their F1 is the highest; a span without a partner counts 0."""
    from scipy.optimize import linear_sum_assignment  # takes a while, and only DROP needs it

    predicted, reference = [drop_normalised(span) for span in spans], [drop_normalised(span) for span in answer]
    exact = float(len(predicted) == len(reference) and set(predicted) == set(reference))
    scores = np.array([[_drop_f1(set(one.split()), set(other.split())) for one in predicted] for other in reference])
    rows, columns = linear_sum_assignment(scores, maximize=True)
    paired = np.zeros(max(scores.shape))
    paired[rows] = scores[rows, columns]
    return exact, float(np.round(paired.mean(), 2))  # the script rounds, as NumPy does


def _drop_f1(prediction: set[str], reference: set[str]) -> float:
    """F1 of two bags; 0 if the answer has numbers and the text has none of them."""
    numbers = {word for word in reference if _is_number(word)}
    if numbers and not numbers & prediction:
        return 0.0
    common = len(prediction & reference)
    precision, recall = common / len(prediction) if prediction else 1.0, common / len(reference) if reference else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _f1(text: str, answer: str) -> float:
    """F1 of words with SQuAD's normalisation. Where either has no words, 1 if neither has, else 0."""
    prediction, reference = squad_normalised(text).split(), squad_normalised(answer).split()
    return float(prediction == reference) if not prediction or not reference else _f1_of_words(prediction, reference)


def _overlap(text: str, answer: str) -> float:
    """As `_f1`, but 0 where either has no words, as in QuAC's script."""
    return _f1_of_words(squad_normalised(text).split(), squad_normalised(answer).split())


def _f1_of_words(prediction: list[str], reference: list[str]) -> float:
    common = (Counter(prediction) & Counter(reference)).total()
    return 2 * common / (len(prediction) + len(reference)) if common else 0.0


def _each_left_out(scores: Sequence[float]) -> float:
    """The mean of the highest scores without one each; of one score, itself."""
    if len(scores) == 1:
        return scores[0]
    best = [max(score for m, score in enumerate(scores) if m != n) for n in range(len(scores))]
    return sum(best) / len(best)


def _references(answers: Sequence[str], unanswerable: str) -> list[str]:
    """The answers, normalised, that have words; an empty one if none is left, for a question without an answer."""
    return [each for each in (squad_normalised(_without(answer, unanswerable)) for answer in answers) if each] or [""]


def _without(text: str, unanswerable: str) -> str:
    return "" if _says(text, unanswerable) else text


def _says(text: str, unanswerable: str) -> bool:
    return bool(unanswerable) and squad_normalised(text) == squad_normalised(unanswerable)
