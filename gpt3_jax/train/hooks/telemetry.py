"""The logging hook: computes rates and progress of a run from the metrics of its steps."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from types import TracebackType

from gpt3_jax import devices
from gpt3_jax.cluster.log import log
from gpt3_jax.model.params import train_flops_per_token
from gpt3_jax.train.evaluation import Evaluation
from gpt3_jax.train.hooks.hook import Hook, Step
from gpt3_jax.train.metrics import MetricsWriter, Progress, duration, human
from gpt3_jax.train.setup import Run
from gpt3_jax.train.step import Metrics

_WINDOW = 50
"""Number of steps over which tokens per second are averaged."""


class Telemetry(Hook):
    """Turns step metrics into progress lines, `metrics.jsonl` and TensorBoard events."""

    def __init__(self, run: Run, tokens: int, skipped: int, writer: MetricsWriter | None) -> None:
        """Begins with the step after those that are counted here.

        Args:
            tokens: consumed when training begins or resumes.
            skipped: updates skipped so far.
            writer: for the lead process; closed with this hook.
        """
        config = run.config
        self.loss = math.nan
        """Loss of the last step seen."""
        self._config, self._writer = config, writer
        self._ctx = config.model.n_ctx
        self._total = run.schedule.total_sequences * self._ctx
        self._progress = Progress(quiet=writer is None)
        self._flops_per_token = train_flops_per_token(config.model)
        kind = run.mesh.devices.flat[0].device_kind
        device = devices.lookup(kind)
        self._peak = device.bf16_flops * run.mesh.size if device else None
        if device is None and writer is not None:
            log.warning(f"no MFU is shown: the peak rate of this device, {kind!r}, is not known")
        self._tokens = tokens
        self._skipped = skipped
        self._warm = False  # the first step includes the start of data and device, so its time gives no rate
        self._clock = time.monotonic()
        self._window: deque[tuple[float, int]] = deque(maxlen=_WINDOW)

    def __enter__(self) -> None:
        self._progress.__enter__()
        self._clock = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__()
        if self._writer is not None:
            self._writer.close()

    @contextlib.contextmanager
    def pause(self, doing: str) -> Iterator[None]:
        """Excludes this block from the training time. A terminal shows `doing` meanwhile."""
        started = time.monotonic()
        self._progress.status(f"{human(self._tokens)}/{human(self._total)} tokens · {doing}")
        yield
        self._clock += time.monotonic() - started

    def see(self, step: Step) -> None:
        now, metrics = time.monotonic(), step.metrics
        batch = step.batch.sequences * self._ctx
        before, self._tokens = step.batch.first * self._ctx, step.batch.first * self._ctx + batch
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
                "step": step.number,
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
        self._progress.show(self._line(step.number, batch, metrics, rate, mfu), final)

    def _line(self, step: int, batch: int, metrics: Metrics, rate: float | None, mfu: float | None) -> str:
        """The progress line, most important values first, because a narrow terminal cuts the end."""
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

    def record(self, kind: str, tokens: int, values: Mapping[str, float | None]) -> None:
        """Writes a line of other metrics, where this process writes any."""
        if self._writer is not None:
            self._writer.write(kind, tokens, values)

    def evaluation(self, tokens: int, result: Evaluation) -> None:
        """Records and logs an evaluation."""
        values = {"loss": result.loss, "bits_per_byte": result.bits_per_byte, "eval_tokens": result.tokens}
        self.record("eval", tokens, values)
        log.info(
            f"held out at {human(tokens)} tokens: loss {result.loss:.4f} nats per token, "
            f"{result.bits_per_byte:.4f} bits per byte"
        )
