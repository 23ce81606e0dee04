"""How an item is scored: which requests ask the model, and what its answers say (GPT-3 section 2.4).

A rule gets the prompt as the model reads it, up to the completion, and the item. It returns requests, and judges their
answers, which come in the same order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol, TypeVar

from gpt3_jax.evals.requests import (
    Answer,
    Beam,
    Completed,
    Completion,
    Continuation,
    Greedy,
    Request,
    Score,
    Text,
    TextScore,
)
from gpt3_jax.evals.tasks.item import Item


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the answers say about one item."""

    values: tuple[float, ...] = ()
    """What was compared, one for each choice."""
    chosen: int | None = None
    """Index of the choice with the highest value."""
    picked: tuple[int, ...] = ()
    """Indices of all choices that the model calls right, for tasks that ask of each."""
    text: str | None = None
    """What the model generated."""
    logprob: float | None = None
    """Natural logarithm: of the right completion, or of the text."""
    tokens: int = 0
    bytes: int = 0
    words: int = 0
    """Of what `logprob` is the likelihood of."""


class Rule(Protocol):
    """A scoring rule: a frozen dataclass, whose fields may be open settings."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[object]]]
    prompted: ClassVar[bool]
    """Whether a prompt stands before what is scored; False for texts, which are read in windows."""

    def contexts(self, item: Item) -> tuple[str, ...]:
        """The item's contexts that follow the demonstrations, one prompt each."""

    def requests(self, prompts: Sequence[str], separator: str, item: Item) -> list[Request]:
        """What to ask, given the prompts for `contexts`."""

    def judge(self, answers: Sequence[Answer], item: Item) -> Judgement: ...


@dataclasses.dataclass(frozen=True)
class MeanLogLikelihood:
    """The choice with the highest log-likelihood per token."""

    prompted: ClassVar[bool] = True

    def contexts(self, item: Item) -> tuple[str, ...]:
        return (item.context,)

    def requests(self, prompts: Sequence[str], separator: str, item: Item) -> list[Request]:
        return [Continuation(prompts[0], separate(prompts[0], separator) + choice) for choice in item.choices]

    def judge(self, answers: Sequence[Answer], item: Item) -> Judgement:
        scores = _all(answers, Score)
        return _choose([score.logprob / score.tokens for score in scores], scores, item)


@dataclasses.dataclass(frozen=True)
class AnswerNormalised:
    """The choice with the highest P(completion | context) / P(completion | answer context), for ARC, OpenBookQA and
    RACE."""

    prompted: ClassVar[bool] = True
    answer_context: str = "Answer: "
    """As the paper prints it. A space at its end is the separator, so it is scored with the completion."""
    per_token: bool = False
    """Whether the logarithm of the ratio is divided by the completion's tokens."""

    def contexts(self, item: Item) -> tuple[str, ...]:
        return (item.context,)

    def requests(self, prompts: Sequence[str], separator: str, item: Item) -> list[Request]:
        bare = self.answer_context.rstrip(" ")
        space = self.answer_context[len(bare) :] or separator
        return [
            *(Continuation(prompts[0], separate(prompts[0], separator) + choice) for choice in item.choices),
            *(Continuation(bare, space + choice) for choice in item.choices),
        ]

    def judge(self, answers: Sequence[Answer], item: Item) -> Judgement:
        scores = _all(answers, Score)
        given, alone = scores[: len(item.choices)], scores[len(item.choices) :]
        ratios = [a.logprob - b.logprob for a, b in zip(given, alone, strict=True)]
        if self.per_token:
            ratios = [ratio / score.tokens for ratio, score in zip(ratios, given, strict=True)]
        return _choose(ratios, given, item)


@dataclasses.dataclass(frozen=True)
class PartialEvaluation:
    """The candidate in the context after which the rest of the sentence is likeliest, for Winograd and Winogrande."""

    prompted: ClassVar[bool] = True

    def contexts(self, item: Item) -> tuple[str, ...]:
        return item.contexts

    def requests(self, prompts: Sequence[str], separator: str, item: Item) -> list[Request]:
        return [Continuation(prompt, separate(prompt, separator) + item.completion) for prompt in prompts]

    def judge(self, answers: Sequence[Answer], item: Item) -> Judgement:
        scores = _all(answers, Score)
        return _choose([score.logprob for score in scores], scores, item)


@dataclasses.dataclass(frozen=True)
class EachAnswer:
    """MultiRC: whether each answer to a question is right, by the likelier of two lines per token, which differ in the
    word before the answer."""

    prompted: ClassVar[bool] = True
    true: str = "- [True] "
    false: str = "- [False] "
    earlier_answers: bool = False
    """Whether the question's earlier answers stand before an answer, with their gold labels."""

    def contexts(self, item: Item) -> tuple[str, ...]:
        return (item.context,)

    def requests(self, prompts: Sequence[str], separator: str, item: Item) -> list[Request]:
        asked: list[Request] = []
        context = prompts[0]
        for n, answer in enumerate(item.choices):
            space = separate(context, separator)
            asked += (Continuation(context, space + word + answer) for word in (self.true, self.false))
            if self.earlier_answers:
                context += f"{space}{self.true if n in item.right else self.false}{answer}\n"
        return asked

    def judge(self, answers: Sequence[Answer], item: Item) -> Judgement:
        each = [score.logprob / score.tokens for score in _all(answers, Score)]
        margins = tuple(true - false for true, false in zip(each[::2], each[1::2], strict=True))
        return Judgement(margins, picked=tuple(n for n, margin in enumerate(margins) if margin >= 0))


@dataclasses.dataclass(frozen=True)
class Generated:
    """What the model generates after the prompt: beam search of width 4 with length penalty 0.6."""

    prompted: ClassVar[bool] = True
    max_tokens: int = 64
    stop: str = "\n"
    """Where a completion ends; empty: at end-of-text and `max_tokens` only."""
    decoding: Literal["beam", "greedy"] = "beam"
    width: int = 4
    alpha: float = 0.6
    penalty: Literal["gnmt", "power"] = "gnmt"
    stopping: Literal["bound", "heuristic"] = "bound"
    likelihood: bool = False
    """Whether the right completion's likelihood is asked for too."""

    def contexts(self, item: Item) -> tuple[str, ...]:
        return (item.context,)

    def requests(self, prompts: Sequence[str], separator: str, item: Item) -> list[Request]:
        how = Greedy() if self.decoding == "greedy" else Beam(self.width, self.alpha, self.penalty, self.stopping)
        stop = (self.stop,) if self.stop else ()
        asked: list[Request] = [Completion(prompts[0], stop, self.max_tokens, how)]
        if self.likelihood:
            asked.append(Continuation(prompts[0], separate(prompts[0], separator) + item.completion))
        return asked

    def judge(self, answers: Sequence[Answer], item: Item) -> Judgement:
        (completed,) = _all(answers[:1], Completed)
        if not self.likelihood:
            return Judgement(text=completed.text)
        (score,) = _all(answers[1:], Score)
        return Judgement(text=completed.text, logprob=score.logprob, tokens=score.tokens)


@dataclasses.dataclass(frozen=True)
class Labelled(Generated):
    """A label in words, one of the item's choices: generated ("framed similar to T5", as BoolQ, CB, RTE and WiC), or
    the likeliest of the choices. A generated text that is none of them, but for white space around it, is wrong."""

    framing: Literal["generated", "choices"] = "generated"

    def requests(self, prompts: Sequence[str], separator: str, item: Item) -> list[Request]:
        if self.framing == "choices":
            return MeanLogLikelihood().requests(prompts, separator, item)
        return super().requests(prompts, separator, item)

    def judge(self, answers: Sequence[Answer], item: Item) -> Judgement:
        if self.framing == "choices":
            return MeanLogLikelihood().judge(answers, item)
        judgement = super().judge(answers, item)
        words = [choice.strip() for choice in item.choices]
        text = (judgement.text or "").strip()
        return dataclasses.replace(judgement, chosen=words.index(text) if text in words else None)


_DETERMINERS = """a an few her his each every many much my our some that the their these this those which whose
your"""


@dataclasses.dataclass(frozen=True)
class Referent(Generated):
    """WSC: a noun is generated, and choice 0 (it is the item's noun) or 1 (it is another) follows from it. An empty
    text is neither."""

    referent: Literal["overlap", "exact"] = "overlap"
    """overlap: as T5 does it, without case and determiners, the words of one noun are all in the other, and both or
    none have an apostrophe. exact: the two are the same but for case."""

    def judge(self, answers: Sequence[Answer], item: Item) -> Judgement:
        judgement = super().judge(answers, item)
        texts = [(judgement.text or "").strip().lower(), item.completion.strip().lower()]
        if self.referent == "exact":
            same = texts[0] == texts[1]
        else:
            said, meant = ({*text.split()} - {*_DETERMINERS.split()} for text in texts)
            texts[0] = texts[0] if said else ""
            same = (said <= meant or meant <= said) and ("'" in texts[0]) == ("'" in texts[1])
        return dataclasses.replace(judgement, chosen=(0 if same else 1) if texts[0] else None)


@dataclasses.dataclass(frozen=True)
class LastWord(Generated):
    """LAMBADA: the likelihood of the completion, and whether the model predicts it; then choice 0, the only one, is
    chosen."""

    answer: Literal["likeliest", "generated"] = "likeliest"
    """likeliest: each token of the completion is the likeliest at its place. generated: the first word that is
    generated is the completion, but for punctuation after it."""

    def requests(self, prompts: Sequence[str], separator: str, item: Item) -> list[Request]:
        between = separate(prompts[0], separator)
        if item.zero_shot_separator is not None and prompts[0] == item.zero_shot:
            between = item.zero_shot_separator
        scored = Continuation(prompts[0], between + item.completion)
        return [scored] if self.answer == "likeliest" else [scored, *super().requests(prompts, separator, item)]

    def judge(self, answers: Sequence[Answer], item: Item) -> Judgement:
        (score,) = _all(answers[:1], Score)
        if self.answer == "likeliest":
            return Judgement(chosen=0 if score.greedy else None, logprob=score.logprob, tokens=score.tokens)
        judgement = super().judge(answers[1:], item)
        words = (judgement.text or "").split()
        said = bool(words) and item.completion in (words[0], words[0].rstrip(_AFTER_A_WORD))
        return dataclasses.replace(judgement, chosen=0 if said else None, logprob=score.logprob, tokens=score.tokens)


_AFTER_A_WORD = ".,;:?!\"\u201d\u2019'"


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """How likely a whole text is: language modelling. The item's completion is the text."""

    prompted: ClassVar[bool] = False
    stride: int = 0
    """Tokens that a window of the context's length scores; 0: all of it, windows without overlap."""

    def contexts(self, item: Item) -> tuple[str, ...]:
        return ()

    def requests(self, prompts: Sequence[str], separator: str, item: Item) -> list[Request]:
        return [Text(item.completion, self.stride or None)]

    def judge(self, answers: Sequence[Answer], item: Item) -> Judgement:
        (score,) = _all(answers, TextScore)
        return Judgement(logprob=score.logprob, tokens=score.tokens, bytes=score.bytes, words=score.words)


def separate(context: str, separator: str) -> str:
    """What stands between a context and its completion: nothing after a newline."""
    return "" if context.endswith("\n") else separator


_A = TypeVar("_A", Score, TextScore, Completed)


def _all(answers: Sequence[Answer], kind: type[_A]) -> list[_A]:
    found = [answer for answer in answers if isinstance(answer, kind)]
    if len(found) != len(answers):
        raise TypeError(f"expected answers of type {kind.__name__}, got {[type(a).__name__ for a in answers]}")
    return found


def _choose(values: list[float], scores: Sequence[Score], item: Item) -> Judgement:
    """The first of the highest values."""
    best = max(range(len(values)), key=values.__getitem__)
    right = scores[item.right[0]]
    return Judgement(tuple(values), best, logprob=right.logprob, tokens=right.tokens)
