"""The interface between the training loop and its actions."""

from __future__ import annotations

import dataclasses
from types import TracebackType

from gpt3_jax.data.loader import Batch
from gpt3_jax.train.state import TrainState
from gpt3_jax.train.step import Metrics


@dataclasses.dataclass(frozen=True)
class Step:
    """One step whose metrics have been read."""

    number: int
    """Steps made since the beginning of training, this one included."""
    batch: Batch
    metrics: Metrics
    """On the host."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """Where training stands between two steps."""

    steps: int
    """Steps made since the beginning of training."""
    tokens: int
    """Tokens consumed since then."""
    state: TrainState
    """Donated to the next step: not to be kept beyond the call."""
    done: bool
    """Whether all tokens of the run are consumed."""


class Hook:
    """An action of the loop. Each method does nothing unless it is overridden.

    Hooks are called in the order of the loop's list: `prepare` before the first step; `see` for every step, one step
    late; `act` between two steps; `end` once, when training has ended or was stopped. As context managers they are
    entered before the first step and left, in reverse, however the loop ends.
    """

    every_tokens = 0
    """`act` is called whenever the tokens consumed pass a multiple of this, except at the end of training; 0: never."""
    compiles = ""
    """What `prepare` compiles, in words, for the person who waits."""

    def prepare(self, moment: Moment) -> None:
        """Compiles what will be called: nothing is compiled once training runs."""

    def see(self, step: Step) -> None:
        """Takes note of a step, whose metrics were read while the next one runs. May raise to end training."""

    def act(self, moment: Moment) -> None:
        """Acts on the state. The metrics of all steps before were seen."""

    def end(self, moment: Moment) -> None:
        """Acts on the last state."""

    def __enter__(self) -> None:
        """Takes what it needs while training runs."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets it go again; `error` is what ends training, None at a good end."""
