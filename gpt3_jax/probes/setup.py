"""Which probes of bias are run, with which words, files and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpt3_jax.errors import UserError
from gpt3_jax.evals.requests import Answer, Request
from gpt3_jax.probes import cooccurrence, occupations, sentiment, winogender
from gpt3_jax.probes.cooccurrence import GENDER_PROMPTS, Cooccurrence, race_prompts, religion_prompts
from gpt3_jax.probes.descriptive import Describing, describing
from gpt3_jax.probes.lists import Lists, user_lists
from gpt3_jax.probes.occupations import Occupations
from gpt3_jax.probes.outputs import Drawing
from gpt3_jax.probes.sentiment import Sentiment
from gpt3_jax.probes.winogender import Sentence, Winogender

PROBES = ("occupations", "winogender", "cooccurrence", "sentiment", "religion")
LEAST = 5
Found = Occupations | Winogender | Cooccurrence | Sentiment


@dataclasses.dataclass(frozen=True)
class Setup:
    """Of `prepare`."""

    probes: tuple[str, ...]
    lists: Lists
    drawing: Drawing
    least: int
    sentences: tuple[Sentence, ...] = ()
    sentiments: Mapping[str, float] = dataclasses.field(default_factory=dict)
    describing: Describing | None = None
    files: Mapping[str, str | None] = dataclasses.field(default_factory=dict)

    def requests(self, probe: str) -> list[Request]:
        """What a probe asks of the model."""
        prompts = self.prompts(probe)
        if prompts:
            return cooccurrence.requests(prompts, self.drawing)
        return occupations.requests(self.lists) if probe == "occupations" else winogender.requests(self.sentences)

    def prompts(self, probe: str) -> Mapping[str, Sequence[str]]:
        """The prompts by group of a probe that looks at outputs."""
        if probe == "cooccurrence":
            return GENDER_PROMPTS
        if probe == "sentiment":
            return race_prompts(self.lists)
        return religion_prompts(self.lists) if probe == "religion" else {}

    def measure(self, probe: str, answers: Mapping[Request, Answer]) -> Found:
        if probe == "occupations":
            return occupations.measure(self.lists, answers)
        if probe == "winogender":
            return winogender.measure(self.sentences, answers)
        if probe == "sentiment":
            return sentiment.measure(self.lists, answers, self.drawing, self.sentiments, self.least)
        if probe == "religion":
            return cooccurrence.religions(self.lists, answers, self.drawing, self.least)
        assert self.describing is not None
        return cooccurrence.genders(answers, self.drawing, self.describing, self.least)

    def records(self, probe: str, answers: Mapping[Request, Answer], found: Found) -> Iterator[dict[str, Any]]:
        """What the model gave, line by line."""
        for group, prompts in self.prompts(probe).items():
            yield from self.drawing.records(group, prompts, answers)
        if isinstance(found, Occupations):
            for variant, each in found.variants.items():
                for occupation, ratio in each.ratios.items():
                    yield {"context": variant, "occupation": occupation, "log_ratio": ratio}
        if isinstance(found, Winogender):
            for sentence, chosen in zip(found.sentences, found.chosen, strict=True):
                yield dataclasses.asdict(sentence) | {"prompt": sentence.prompt, "chosen": chosen}

    def as_data(self) -> dict[str, Any]:
        return {
            "probes": list(self.probes),
            "lists": dataclasses.asdict(self.lists),
            "outputs": self.drawing.as_data(),
            "least": self.least,
            "descriptive": self.describing.name if self.describing else None,
            "files": dict(self.files),
        }


def prepare(
    probes: Sequence[str],
    *,
    words: str | None = None,
    occupations: str | None = None,
    winogender_file: str | None = None,
    someone: bool = False,
    sentiwordnet: str | None = None,
    descriptive: str = "hanta",
    drawing: Drawing | None = None,
    least: int = LEAST,
) -> Setup:
    """Reads the files that the probes need, before any model is loaded.

    Raises:
        UserError: an unknown probe, a probe without its file, a file that is not there or has another form, or a tagger
            that is not installed.
        RunError: a file cannot be read.
    """
    for probe in probes:
        if probe not in PROBES:
            raise UserError(f"unknown probe {probe!r}; expected {', '.join(PROBES)}")
    if not probes:
        raise UserError(f"there is no probe to run; name one or more of {', '.join(PROBES)}")
    if least < 1:
        raise UserError(f"least is {least}; expected at least 1 output")
    needed = {"winogender": (winogender_file, "--winogender FILE"), "sentiment": (sentiwordnet, "--sentiwordnet FILE")}
    for probe, (path, option) in needed.items():
        if probe in probes and path is None:
            raise UserError(f"the probe {probe} needs its data: {option}; or leave it out of --probes")
        if probe not in probes and path is not None:
            raise UserError(f"{option} is for the probe {probe}; add it to --probes, or leave the option out")
    return Setup(
        tuple(dict.fromkeys(probes)),
        user_lists(words, occupations),
        drawing or Drawing(),
        least,
        tuple(winogender.read(winogender_file, someone)) if winogender_file else (),
        sentiment.read_sentiwordnet(sentiwordnet) if sentiwordnet else {},
        describing(descriptive) if "cooccurrence" in probes else None,
        {"words": words, "occupations": occupations, "winogender": winogender_file, "sentiwordnet": sentiwordnet},
    )
