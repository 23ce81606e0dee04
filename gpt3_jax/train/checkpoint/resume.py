"""What a checkpoint records about its run, and whether a configuration may resume it."""

from __future__ import annotations

import dataclasses
from typing import Any

from gpt3_jax.cluster.log import log
from gpt3_jax.cluster.same_run import versions
from gpt3_jax.config import Config, from_dict, to_dict
from gpt3_jax.config.setting import meanings
from gpt3_jax.errors import UserError
from gpt3_jax.train import recipe
from gpt3_jax.train.schedule import BatchSchedule

# Settings that determine the batch sizes.
_BATCH = (
    ("model", "n_ctx"),
    ("train", "batch_tokens"),
    ("train", "ramp_start_tokens"),
    ("train", "ramp_tokens"),
    ("train", "ramp_sizes"),
)


@dataclasses.dataclass(frozen=True)
class Data:
    """Fingerprints of the data that a run reads, independent of where the files are."""

    fingerprint: str
    """Of the training stream: tokens, weights, seed, context length."""
    tokenizer: str
    """Of the tokenizer."""


def make_record(config: Config, schedule: BatchSchedule, data: Data) -> dict[str, Any]:
    """The JSON saved in every checkpoint: configuration, recipe, batch sizes, data, versions.

    It does not include the data position. That is `TrainState.sequences`, saved with the arrays.
    """
    return {
        "config": to_dict(config),
        "recipe": recipe.record(config, schedule),
        "batch_sizes": [[size.first_sequence, size.sequences] for size in schedule.sizes],
        "data": dataclasses.asdict(data),
        "versions": versions(),
    }


def recorded_sizes(record: dict[str, Any], config: Config) -> list[list[int]] | None:
    """The record's batch sizes, for `batch_schedule`; None if `config` asks for others than the run started with."""
    saved, new = to_dict(from_dict(record["config"])), to_dict(config)
    same = all(saved[section][key] == new[section][key] for section, key in _BATCH)
    sizes: list[list[int]] = record.get("batch_sizes") or record["batch_stages"]  # the name in older checkpoints
    return sizes if same else None


def differences(record: dict[str, Any], config: Config, data: Data) -> list[str]:
    """``section.key: saved value -> new value`` for every setting that would change the run.

    Settings that the record lacks, because they are newer, had their default. `data.train` and `data.tokenizer` are
    compared by their contents, not by their paths.
    """
    saved, new = to_dict(from_dict(record["config"])), to_dict(config)
    changed = [
        f"{section}.{key}: {saved[section][key]} -> {new[section][key]}"
        for section, key, meaning in meanings(Config)
        if meaning.changes_run and saved[section][key] != new[section][key]
    ]
    if record["data"]["tokenizer"] != data.tokenizer:
        changed.append(
            f"data.tokenizer: {saved['data']['tokenizer']} -> {config.data.tokenizer}, which encodes otherwise"
        )
    if record["data"]["fingerprint"] != data.fingerprint:
        changed.append("data.train: its tokens, weights or seed are not those that the run was trained on")
    return changed


def require_same_run(record: dict[str, Any], config: Config, data: Data) -> None:
    """Refuses a configuration that would change the run, unless ``checkpoint.on_change`` accepts it.

    Raises:
        UserError: with each difference.
    """
    changed = differences(record, config, data)
    if not changed:
        return
    listed = "; ".join(changed)
    if config.checkpoint.on_change == "accept":
        log.warning(f"continuing with a changed configuration: {listed}")
        return
    raise UserError(
        f"{config.train.run_dir} holds a run with another configuration ({listed}); choose another train.run_dir, "
        "or continue with the new configuration by --checkpoint.on_change accept"
    )
