"""The layout of a run's folder, and the configuration written into it."""

from __future__ import annotations

from pathlib import Path

from gpt3_jax.config import Config, to_yaml
from gpt3_jax.errors import RunError

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"


def write_config(run_dir: Path, config: Config) -> None:
    """Writes ``RUN_DIR/config.yaml`` atomically. Raises RunError if it cannot be written."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        temporary = run_dir / f"{CONFIG}.tmp"
        temporary.write_text(to_yaml(config), encoding="utf-8")
        temporary.replace(run_dir / CONFIG)
    except OSError as error:
        raise RunError(f"cannot write into {run_dir}: {error.strerror}; choose another train.run_dir") from None
