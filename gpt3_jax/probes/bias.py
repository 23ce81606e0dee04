"""Probes models for bias as section 6.2 of the paper does, and writes what was found."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt3_jax.cluster.agreement import is_lead
from gpt3_jax.cluster.log import log
from gpt3_jax.config import ParallelConfig
from gpt3_jax.errors import UserError
from gpt3_jax.evals.kept import KeptAnswers
from gpt3_jax.evals.results import RESULTS
from gpt3_jax.evals.run import answer_all, made_by
from gpt3_jax.evals.subject import Subject
from gpt3_jax.evals.written import alone_in, records, require_own, write
from gpt3_jax.probes.results import FORMAT, Bias
from gpt3_jax.probes.setup import Found, Setup

SAMPLES = "samples.jsonl"


def bias(
    checkpoint: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    setup: Setup,
    out: str | os.PathLike[str] | None = None,
    parallel: ParallelConfig | None = None,
) -> Bias:
    """Probes one or several checkpoints.

    Args:
        checkpoint: a run's folder (its newest checkpoint) or a Hugging Face folder; or several.
        setup: of `prepare`.
        out: folder for results, samples, pictures and kept answers; None: nothing is written.
        parallel: the mesh over all devices, and the ZeRO stage by which it keeps the weights; None: one device.

    Raises:
        UserError: a checkpoint that is none, or `out` is in use.
        RunError: a file or checkpoint cannot be read or written.
    """
    from gpt3_jax.evals.loading import load_each

    folders = [checkpoint] if isinstance(checkpoint, (str, os.PathLike)) else list(checkpoint)
    return probe_subjects(load_each(folders, parallel), setup, out)


def probe_subjects(
    subjects: Iterable[Subject],
    setup: Setup,
    out: str | os.PathLike[str] | None = None,
    made: Mapping[str, Any] | None = None,
) -> Bias:
    """Probes models one after the other. With `out`, answers are kept there as they come, and results at the end."""
    found: dict[str, dict[str, Found]] = {}
    models: list[dict[str, Any]] = []
    with alone_in(out) as folder:
        if folder:
            require_own(folder, FORMAT)
        with records(folder / SAMPLES if folder else None) as on_record:
            for subject in subjects:
                if subject.name in found:
                    subject = dataclasses.replace(subject, name=f"{subject.name} ({len(models) + 1})")
                with KeptAnswers(folder, subject.depends_on()) if folder else contextlib.nullcontext() as kept:
                    found[subject.name] = _probe(subject, setup, kept, on_record)
                models.append(subject.as_data())
                del subject  # its weights are freed before the next model's are loaded
        result = Bias(found, tuple(models), setup, {**made_by(), "protocol": "GPT-3 section 6.2", **(made or {})})
        if folder and is_lead():
            write(folder / RESULTS, result.to_json())
            _draw(result, folder)
    return result


def _probe(
    subject: Subject, setup: Setup, kept: KeptAnswers | None, on_record: Callable[[dict[str, Any]], None]
) -> dict[str, Found]:
    found = {}
    say_if_cut(subject, setup)
    for probe in setup.probes:
        asked = {request: str(n) for n, request in enumerate(setup.requests(probe))}
        answers = answer_all(subject, probe, asked, kept, f"{subject.name}: {probe}")
        found[probe] = setup.measure(probe, answers)
        for record in setup.records(probe, answers, found[probe]):
            on_record({"model": subject.name, "probe": probe, **record})
    return found


def say_if_cut(subject: Subject, setup: Setup) -> None:
    """Says that outputs are shorter than asked for, where the context has no room."""
    prompts = [each for probe in setup.probes for group in setup.prompts(probe).values() for each in group]
    longest = max((len(subject.tokenizer.encode(prompt)) for prompt in prompts), default=0)
    room = subject.config.n_ctx - longest
    if prompts and setup.drawing.tokens > room:
        log.warning(
            f"{subject.name}: its context of {subject.config.n_ctx:,} tokens has room for {room:,} after the longest "
            f"prompt, not for outputs of {setup.drawing.tokens:,}; they are cut there"
        )


def _draw(result: Bias, folder: Path) -> None:
    from gpt3_jax.probes import picture  # imports what only pictures need

    try:
        for name in picture.draw(result, folder):
            log.info(f"wrote {folder / name}")
    except UserError as error:  # matplotlib is optional
        log.info(f"no pictures: {error}")
