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
    """Steps since the beginning of training, this one included."""
    batch: Batch
    metrics: Metrics
    """On the host."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """The position of training between two steps."""

    steps: int
    """Steps since the beginning of training."""
    tokens: int
    """Tokens consumed since the beginning of training."""
    state: TrainState
    """Donated to the next step: do not keep it beyond the call."""
    done: bool
    """Whether all tokens of the run are consumed."""


class Hook:
    """An action of the loop. Methods that are not overridden do nothing.

    Hooks are called in the order of the loop's list: `prepare` before the first step; `see` for every step, one step
    late; `act` between two steps; `end` once, when training has ended or was stopped. As context managers they are
    entered before the first step and exited in reverse order, however the loop ends.
    """

    every_tokens = 0
    """`act` is called whenever the tokens consumed pass a multiple of this, except at the end of training; 0: never."""
    compiles = ""
    """What `prepare` compiles, as words for a log message."""

    def prepare(self, moment: Moment) -> None:
        """Compiles everything that the hook will call. Nothing may compile once training runs."""

    def see(self, step: Step) -> None:
        """Receives a step, whose metrics were read while the next step runs. May raise to end training."""

    def act(self, moment: Moment) -> None:
        """Acts on the state. `see` has been called for all earlier steps."""

    def end(self, moment: Moment) -> None:
        """Acts on the last state."""

    def __enter__(self) -> None:
        """Acquires what the hook needs while training runs."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Releases it. `error` is the exception that ends training, or None."""
