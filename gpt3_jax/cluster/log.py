"""The project's only logger, ``gpt3_jax``. Only the lead process logs.

Progress has level `info`. What the user must not miss, such as a damaged checkpoint or a setting that the mesh
overrides, has level `warning`, which Python prints even if logging is not configured. The commands print both, as plain
lines on stderr.
"""

from __future__ import annotations

import logging
import sys

log = logging.getLogger("gpt3_jax")


class _LeadOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        jax = sys.modules.get("jax")  # before the processes have joined, asking JAX would start its devices
        return jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0


class _PlainLines(logging.Handler):
    """Prints messages to the current `sys.stderr`, which a progress display may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr, flush=True)


log.addFilter(_LeadOnly())


def show() -> None:
    """For the commands: prints log messages, progress included, without level and logger name."""
    if any(isinstance(handler, _PlainLines) for handler in log.handlers):
        return
    handler = _PlainLines()
    handler.addFilter(_LeadOnly())  # on the handler, because records of child loggers skip the logger's own filter
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
