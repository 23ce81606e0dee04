"""The project's one logger, ``gpt3_jax``: lines for the person, from the lead process alone.

Progress is `info`; what must not be missed, such as a damaged checkpoint or a setting that the mesh overrides, is
`warning`, which Python prints where logging is not configured. The commands print both, as plain lines on stderr.
"""

from __future__ import annotations

import logging
import sys

log = logging.getLogger("gpt3_jax")


class _LeadOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        jax = sys.modules.get("jax")  # asked before the processes have joined, JAX would start its devices
        return jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0


class _PlainLines(logging.Handler):
    """Prints messages to stderr as it is when they come: a progress display may have taken its place."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr, flush=True)


log.addFilter(_LeadOnly())


def show() -> None:
    """For the commands: prints what is logged, progress included, without the level and name that others add."""
    if any(isinstance(handler, _PlainLines) for handler in log.handlers):
        return
    handler = _PlainLines()
    handler.addFilter(_LeadOnly())  # for the loggers below this one, whose records skip its own filter
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
