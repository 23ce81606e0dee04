"""The best configuration of a search, as a YAML file that `train --config` takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gpt3_jax.config import Config, to_dict
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.plan.receipt import Receipt
from gpt3_jax.plan.search import step_time
from gpt3_jax.quantities import count, duration, size


def check_file(path: str) -> None:
    """Refuses, before anything is compiled, a file that could not be written.

    Raises:
        UserError: it exists, or its folder does not.
    """
    if os.path.lexists(path):
        raise UserError(f"{path!r} exists; choose another file for the configuration, or move that one away")
    if not Path(path).resolve().parent.is_dir():
        raise UserError(f"the folder of {path!r} does not exist; make it first")


def write_configuration(path: str, config: Config, receipt: Receipt, command: str) -> None:
    """Writes model, mesh, memory, and what else differs from its default, below comments that say what was planned.

    Raises:
        RunError: the file cannot be written.
    """
    partial = Path(f"{path}.partial")
    try:
        partial.write_text(configuration_text(config, receipt, command), encoding="utf-8")
        partial.rename(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"cannot write {path!r}: {error.strerror}") from error


def configuration_text(config: Config, receipt: Receipt, command: str) -> str:
    """The text of the file."""
    return comments(receipt, command) + yaml.safe_dump(_changed(to_dict(config), to_dict(Config())), sort_keys=False)


def settings_text(settings: Mapping[str, Any], receipt: Receipt, command: str) -> str:
    """The text of a file that only sets what a search chooses, for use with the file of the model.

    Args:
        settings: `Candidate.settings`.
    """
    nested: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        nested.setdefault(section, {})[name] = value
    return comments(receipt, command) + yaml.safe_dump(nested, sort_keys=False)


def comments(receipt: Receipt, command: str) -> str:
    """What made a configuration and what is planned for it, as comments of YAML: both times of a step, and what follows
    from the longer, by which a search ranks."""
    memory, prediction = receipt.memory, receipt.prediction
    room = f" of {size(memory.usable)}" if memory.usable else ""
    lines = [
        f"found by: {command}",
        f"by {', '.join(f'{name} {version}' for name, version in receipt.versions.items())}",
        f"{receipt.topology['name']}: {size(memory.total)}{room} on a device, compiled",
    ]
    if prediction:
        scheduled = receipt.scheduled_seconds
        order = f", {duration(scheduled)} in the compiled schedule's order" if scheduled else ""
        share = prediction.step_seconds / step_time(receipt)
        tokens, mfu = share * prediction.tokens_per_second, share * prediction.mfu
        lines += [
            f"predicted, not run: {duration(prediction.step_seconds)} a step by the roofline{order};",
            f"by the longer {count(tokens)} tokens/s, MFU {mfu:.1%} (6N)",
        ]
    return "".join(f"# {line}\n" for line in lines)


def _changed(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """What differs from the defaults; of the model, the mesh and the memory all, so that the file says them."""
    kept = {
        section: {
            name: value
            for name, value in settings.items()
            if section in ("model", "parallel", "memory") or value != defaults[section][name]
        }
        for section, settings in values.items()
    }
    return {section: settings for section, settings in kept.items() if settings}
