"""Finds the mesh, ZeRO stage, remat and microbatch to train with. Every combination that divides is pruned and ordered
by arithmetic; the best are compiled."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gpt3_jax.cluster.log import log
from gpt3_jax.config import Config
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.parallel.mesh import MeshShape
from gpt3_jax.plan.cache import plan
from gpt3_jax.plan.candidates import ROOMY, Candidate, candidates, in_order
from gpt3_jax.plan.receipt import Receipt
from gpt3_jax.plan.topologies import Topology
from gpt3_jax.quantities import duration, size

SECONDS = 120.0
"""How long a search compiles, unless told otherwise."""
NEAR = 1.03
"""Predicted times closer than this are one: no prediction tells them apart."""
OTHERS = 2
"""How many of the other remats are compiled, in case the estimate misranks them."""


class Clock:
    """How long a search may compile.

    Args:
        now: what it reads; `time.process_time` where other work takes the machine's cores away.
    """

    def __init__(self, seconds: float, now: Callable[[], float] | None = None) -> None:
        self.seconds = seconds
        self.now = now or time.monotonic
        self._started = self.now()
        self._longest = 0.0

    @property
    def elapsed(self) -> float:
        return self.now() - self._started

    def has_time(self) -> bool:
        """Whether another compilation, as long as the longest so far, ends in time. The first always has."""
        return not self._longest or self.elapsed + self._longest <= self.seconds

    def took(self, seconds: float) -> None:
        """Notes how long a compilation took."""
        self._longest = max(self._longest, seconds)


@dataclasses.dataclass
class Tried:
    """What a search compiled, and what it had no time for."""

    compiled: list[tuple[Candidate, Receipt | None]] = dataclasses.field(default_factory=list)
    """With the receipts, of what does not fit too; None where the compiler failed for another reason than memory."""
    left: list[Candidate] = dataclasses.field(default_factory=list)

    def knows(self, candidate: Candidate) -> bool:
        """Whether it was compiled or left out, or one that is alike but for a smaller microbatch did not fit."""
        if any(candidate is one for one in (*(c for c, _ in self.compiled), *self.left)):
            return True
        refused = [c for c, receipt in self.compiled if receipt is not None and receipt.memory.fits is False]
        return any(c.microbatches >= candidate.microbatches and _differ_in_microbatch(c, candidate) for c in refused)


def search(
    config: Config,
    topology: Topology,
    keep: int,
    cache: Path | None,
    seconds: float = SECONDS,
    tried: Tried | None = None,
    now: Callable[[], float] | None = None,
) -> list[tuple[Candidate, Receipt]]:
    """The `keep` best configurations that fit, each compiled; in the order of `best_first`.

    Args:
        seconds: no compilation is begun that, as long as the longest before it, would end later. What is left out is
            said.
        tried: is filled with what was compiled and what was left out.
        now: the clock, as for `Clock`.

    Raises:
        UserError: as `candidates`; or none that can fit.
    """
    clock = Clock(seconds, now)
    tried = Tried() if tried is None else tried
    found = candidates(config, topology)
    if not found:
        raise UserError(
            f"no mesh, stage, remat and microbatch fits {topology.name} by arithmetic; take more devices or a smaller "
            "model"
        )
    assert topology.usable is not None
    log.info(f"{len(found)} candidates by arithmetic; compiling the fastest until {keep} fit")
    order = in_order(found, config, topology.usable)
    attempts = 4 * keep
    confirmed = confirm(order, topology, keep, attempts, cache, clock, tried)

    def also(why: str, others: Sequence[Candidate]) -> None:
        new = [c for c in others if not tried.knows(c)]
        if why and new and clock.has_time():
            log.info(why)
        confirmed.extend(confirm(new, topology, len(new), len(new), cache, clock, tried))

    def one_by_one(why: str, others: Callable[[], Sequence[Candidate]]) -> None:
        """Until there are no others: each changes what the next ones must beat. The time alone limits how many."""
        first = True
        while new := [c for c in others() if not tried.knows(c)]:
            also(why if first else "", new[:1] if clock.has_time() else new)
            first = False

    one_by_one("and what is faster if it fits", lambda: _faster(found, confirmed, topology))
    also(
        "and the fastest of other remats, in case the estimate misranks it",
        _of_other_remats(found, confirmed, topology),
    )
    also("and the simplest that is as fast", _simplest_of(found, confirmed, topology))
    one_by_one("and what may wait for less than the best", lambda: _waiting_less(found, confirmed, topology))
    confirmed = best_first(confirmed)[:keep]
    if tried.left:
        fastest = min(tried.left, key=lambda c: c.prediction.step_seconds)
        log.info(
            f"stopped after {clock.elapsed:.0f} s with {len(tried.left)} more to compile, by arithmetic the fastest of "
            f"them {fastest.options}: {size(fastest.bytes)}, {duration(fastest.prediction.step_seconds)} a step; "
            "--minutes gives a search more time"
        )
    elif len(confirmed) < keep:
        why = (
            f"{attempts} of the fastest kinds were compiled"
            if len(order) > attempts
            else "there are no more to compile"
        )
        log.info(
            f"{len(confirmed)} of the {keep} wanted were found: {why}; more devices or a smaller model leave more room"
        )
    return confirmed


def best_first(confirmed: Sequence[tuple[Candidate, Receipt]]) -> list[tuple[Candidate, Receipt]]:
    """What was compiled and fits: the best, then the others, fastest first.

    The best is the fastest, or of those within 3 % of it the one with the fewest mesh axes.
    """
    ordered = sorted(confirmed, key=lambda one: step_time(one[1]))
    near = [one for one in ordered if step_time(one[1]) <= NEAR * step_time(ordered[0][1])]
    best = sorted(near, key=lambda one: _axes(one[0].mesh))[:1]
    return [*best, *(one for one in ordered if one is not best[0])]


def step_time(receipt: Receipt) -> float:
    """The longer of the two times of a step: the roofline's, and that of the compiled schedule. The roofline does not
    know what the program waits for, nor the schedule what collectives share."""
    predicted = receipt.prediction.step_seconds if receipt.prediction else 0.0
    return max(predicted, receipt.scheduled_seconds or 0.0)


def nearest(
    config: Config, mesh: MeshShape, topology: Topology, keep: int, cache: Path | None
) -> list[tuple[Candidate, Receipt]]:
    """Configurations that fit and differ least from one that does not: fewest changed settings first, then fastest.
    Compiles as long as a search does by default, and says how many it leaves out."""
    now = {
        "parallel.stage": config.parallel.stage,
        **{f"parallel.{axis}": size for axis, size in mesh.axes.items()},
        "memory.remat": config.memory.remat,
        "memory.microbatch": config.memory.microbatch,
        "memory.mlp_parts": config.memory.mlp_parts,
    }

    def changes(candidate: Candidate) -> int:
        changed = [key for key, value in candidate.settings.items() if value != now[key]]
        return len(changed) - ("parallel.data" in changed)  # data follows from the other axes

    # Estimates are inexact: only candidates with room to spare are worth a compilation.
    found, tried, clock = candidates(config, topology), Tried(), Clock(SECONDS)
    assert topology.usable is not None
    roomy = [c for c in found if c.bytes <= ROOMY * topology.usable and changes(c)]
    roomy.sort(key=lambda c: (changes(c), c.prediction.step_seconds))
    confirmed = confirm(roomy, topology, keep, 3 * keep, cache, clock, tried)
    if tried.left:
        log.info(
            f"stopped after {clock.elapsed:.0f} s with {len(tried.left)} more to compile, the nearest of them "
            f"{tried.left[0].options}; gpt3-jax plan --search --minutes N looks longer"
        )
    return confirmed


def confirm(
    found: Sequence[Candidate],
    topology: Topology,
    keep: int,
    attempts: int,
    cache: Path | None,
    clock: Clock | None = None,
    tried: Tried | None = None,
) -> list[tuple[Candidate, Receipt]]:
    """Compiles candidates in this order until `keep` of them fit, after as many attempts, or when the time is up.

    Args:
        tried: is filled with what was compiled and what was left out.

    Returns:
        Those that fit, fastest first.
    """
    confirmed: list[tuple[Candidate, Receipt]] = []
    tried = Tried() if tried is None else tried
    for done, candidate in enumerate(found[:attempts]):
        if len(confirmed) == keep:
            break
        if clock and not clock.has_time():
            tried.left += found[done:attempts]
            break
        began = clock.now() if clock else 0.0
        kept, receipt = False, None
        head = f"[{len(tried.compiled) + 1}] {candidate.options}"
        try:
            receipt, kept = plan(candidate.config, topology, cache)
        except (RunError, UserError) as error:
            log.info(f"{head}: {error}")
        finally:
            if clock and not kept:
                clock.took(clock.now() - began)
        tried.compiled.append((candidate, receipt))
        if receipt is None:
            continue
        verdict = "fits" if receipt.memory.fits else "does not fit"
        log.info(
            f"{head}: {size(receipt.memory.total)}, {verdict}{_times(receipt)}{' (kept from before)' if kept else ''}"
        )
        if receipt.memory.fits:
            confirmed.append((candidate, receipt))
    return sorted(confirmed, key=lambda one: step_time(one[1]))


def _times(receipt: Receipt) -> str:
    """The two times that `step_time` takes the longer of, for a line of the log."""
    if receipt.prediction is None:
        return ""
    scheduled = receipt.scheduled_seconds
    order = f", {duration(scheduled)} in the compiled schedule's order" if scheduled else ""
    return f", {duration(receipt.prediction.step_seconds)} a step{order}"


def _differ_in_microbatch(one: Candidate, other: Candidate) -> bool:
    """Whether all else is equal."""
    memory = dataclasses.replace(one.config.memory, microbatch=other.config.memory.microbatch)
    return one.mesh == other.mesh and dataclasses.replace(one.config, memory=memory) == other.config


def _axes(mesh: MeshShape) -> int:
    """Number of axes of more than one device."""
    return sum(size > 1 for size in mesh.sizes)


def _fastest_estimate(confirmed: Sequence[tuple[Candidate, Receipt]]) -> float:
    return min((c.prediction.step_seconds for c, _ in confirmed), default=math.inf)


def _faster(
    found: Sequence[Candidate], confirmed: Sequence[tuple[Candidate, Receipt]], topology: Topology
) -> list[Candidate]:
    """Those that fit by their estimate, and are faster by it than any confirmed."""
    assert topology.usable is not None
    if not confirmed:
        return []
    beyond = _fastest_estimate(confirmed) / NEAR
    return [c for c in found if c.bytes <= topology.usable and c.prediction.step_seconds < beyond]


def _of_other_remats(
    found: Sequence[Candidate], confirmed: Sequence[tuple[Candidate, Receipt]], topology: Topology
) -> list[Candidate]:
    """Of the remats that are not among those confirmed, the fastest two: of each the fastest candidate that leaves room
    by its estimate, if it is as fast by it."""
    assert topology.usable is not None
    there = {c.config.memory.remat for c, _ in confirmed}
    fastest: dict[str, Candidate] = {}
    for candidate in found:
        remat = candidate.config.memory.remat
        near = candidate.prediction.step_seconds <= NEAR * _fastest_estimate(confirmed)
        if remat not in there and near and candidate.bytes <= ROOMY * topology.usable:
            fastest.setdefault(remat, candidate)
    return list(fastest.values())[:OTHERS]


def _waiting_less(
    found: Sequence[Candidate], confirmed: Sequence[tuple[Candidate, Receipt]], topology: Topology
) -> list[Candidate]:
    """Where the compiled program of the best waits, which arithmetic cannot know: the best in fewer microbatches, which
    send less; and of each other tensor axis, of each other stage on its mesh, and of each other remat on any mesh that
    was compiled, the fastest that leaves room, or that fits, where the best leaves none. Each if its estimate is faster
    than what the best takes; the estimate has no waits but those of a TPU's plain scan. Last come other remats of the
    meshes that are slower."""
    assert topology.usable is not None
    if not confirmed:
        return []
    (best, receipt), *_ = best_first(confirmed)
    beyond = step_time(receipt)
    most = topology.usable * (1.0 if best.bytes > ROOMY * topology.usable else ROOMY)
    roomy = [c for c in found if c.bytes <= most and c.prediction.step_seconds < beyond]
    tensors = {c.mesh.tensor for c, _ in confirmed}
    stages = {c.config.parallel.stage for c, _ in confirmed if c.mesh == best.mesh}
    remats: dict[MeshShape, set[str]] = {}
    for candidate, _ in confirmed:
        remats.setdefault(candidate.mesh, set()).add(candidate.config.memory.remat)
    fastest: dict[str, Candidate] = {}
    for candidate in roomy:
        if candidate.microbatches < best.microbatches and _differ_in_microbatch(candidate, best):
            fastest.setdefault("microbatches", candidate)
        elif candidate.mesh.tensor not in tensors:
            fastest.setdefault(f"tensor {candidate.mesh.tensor}", candidate)
        elif candidate.mesh == best.mesh and candidate.config.parallel.stage not in stages:
            fastest.setdefault(f"stage {candidate.config.parallel.stage}", candidate)
        elif candidate.config.memory.remat not in remats.get(candidate.mesh, {candidate.config.memory.remat}):
            fastest.setdefault(f"{candidate.mesh} {candidate.config.memory.remat}", candidate)
    return sorted(fastest.values(), key=lambda c: c.mesh != best.mesh and c.mesh in remats)


def _simplest_of(
    found: Sequence[Candidate], confirmed: Sequence[tuple[Candidate, Receipt]], topology: Topology
) -> list[Candidate]:
    """The fastest of those that leave room, are as fast as the fastest confirmed, and have fewer axes than any."""
    assert topology.usable is not None
    near = NEAR * _fastest_estimate(confirmed) if confirmed else 0.0
    axes = min((_axes(c.mesh) for c, _ in confirmed), default=0)
    as_fast = [c for c in found if c.bytes <= ROOMY * topology.usable and c.prediction.step_seconds <= near]
    return sorted((c for c in as_fast if _axes(c.mesh) < axes), key=lambda c: _axes(c.mesh))[:1]
