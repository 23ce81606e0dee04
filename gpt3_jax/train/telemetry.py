"""Rates and progress of a run, from the metrics of its steps."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator

from jax.sharding import Mesh

from gpt3_jax import devices
from gpt3_jax.config import Config
from gpt3_jax.model.params import train_flops_per_token
from gpt3_jax.train.evaluation import Evaluation
from gpt3_jax.train.metrics import MetricsWriter, Progress, duration, human
from gpt3_jax.train.schedule import BatchSchedule, BatchSize
from gpt3_jax.train.step import Metrics

_WINDOW = 50
"""Steps over which tokens per second are averaged."""


class Telemetry:
    """Turns step metrics into lines for the person, `metrics.jsonl` and TensorBoard."""

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        schedule: BatchSchedule,
        position: int,
        skipped: int,
        writer: MetricsWriter | None,
        say: Callable[[str], None],
    ) -> None:
        """`position` and `skipped`: sequences consumed, and updates skipped, when training begins or resumes."""
        self.loss = math.nan
        """Of the last step that was noted."""
        self._config, self._writer, self._say = config, writer, say
        self._ctx = config.model.n_ctx
        self._total = schedule.total_sequences * self._ctx
        self._progress = Progress(say, quiet=writer is None)
        self._flops_per_token = train_flops_per_token(config.model)
        kind = mesh.devices.flat[0].device_kind
        device = devices.lookup(kind)
        self._peak = device.bf16_flops * mesh.size if device else None
        if device is None and writer is not None:
            say(f"no MFU is shown: the peak rate of this device, {kind!r}, is not known")
        self._tokens = position * self._ctx
        self._skipped = skipped
        self._warm = False  # the first step also starts the data and the device: its time is no rate
        self._clock = time.monotonic()
        self._window: deque[tuple[float, int]] = deque(maxlen=_WINDOW)

    def __enter__(self) -> Telemetry:
        self._progress.__enter__()
        self._clock = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """Takes the progress line away; idempotent."""
        self._progress.__exit__()

    @contextlib.contextmanager
    def pause(self, doing: str) -> Iterator[None]:
        """What is `doing` inside does not count as training time."""
        started = time.monotonic()
        self._progress.status(f"{human(self._tokens)}/{human(self._total)} tokens · {doing}")
        yield
        self._clock += time.monotonic() - started

    def step(self, step: int, first: int, size: BatchSize, metrics: Metrics) -> None:
        """Notes one step, whose metrics are on the host."""
        now = time.monotonic()
        batch = size.sequences * self._ctx
        before, self._tokens = first * self._ctx, first * self._ctx + batch
        if self._warm:
            self._window.append((now - self._clock, batch))
        self._warm = True
        self._clock = now
        self.loss = float(metrics.loss)
        self._skipped += int(not metrics.finite)
        seconds = sum(s for s, _ in self._window)
        rate = sum(t for _, t in self._window) / seconds if seconds else None
        mfu = rate * self._flops_per_token / self._peak if self._peak and rate else None
        every = self._config.train.log_tokens
        final = self._tokens >= self._total
        if self._writer is not None and (final or not every or before // every != self._tokens // every):
            values: dict[str, float | None] = {
                "step": step,
                "loss": self.loss,
                "learning_rate": float(metrics.learning_rate),
                "grad_norm": float(metrics.grad_norm),
                "batch_tokens": batch,
                "skipped": self._skipped,
                "tokens_per_second": rate,
            }
            if self._peak:
                values["mfu"] = mfu
            self._writer.write("train", self._tokens, values)
        self._progress.show(self._line(step, batch, metrics, rate, mfu), final)

    def _line(self, step: int, batch: int, metrics: Metrics, rate: float | None, mfu: float | None) -> str:
        """What matters most first: a narrow terminal cuts the end."""
        left = max(0, self._total - self._tokens)
        parts = [
            f"{human(self._tokens)}/{human(self._total)} tokens",
            f"loss {self.loss:.4f}",
            *([f"{human(rate)} tokens/s", f"{duration(left / rate)} left"] if rate else []),
            *([f"MFU {100 * mfu:.1f}% (6N)"] if mfu is not None else []),
            f"step {step}",
            f"lr {float(metrics.learning_rate):.2e}",
            f"batch {human(batch)}",
            *([f"{self._skipped} skipped"] if self._skipped else []),
        ]
        return " · ".join(parts)

    def evaluation(self, tokens: int, result: Evaluation) -> None:
        """Notes an evaluation."""
        if self._writer is not None:
            self._writer.write(
                "eval",
                tokens,
                {"loss": result.loss, "bits_per_byte": result.bits_per_byte, "eval_tokens": result.tokens},
            )
        self._say(
            f"held out at {human(tokens)} tokens: loss {result.loss:.4f} nats per token, "
            f"{result.bits_per_byte:.4f} bits per byte"
        )
