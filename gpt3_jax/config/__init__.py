"""The configuration of a run: its settings (`schema`, `machine`), and how they are read and written (`loading`)."""

from gpt3_jax.config.loading import (
    config_dir,
    cost_settings,
    from_dict,
    known_keys,
    load_config,
    load_devices,
    preset,
    presets,
    replace,
    split_overrides,
    to_dict,
    to_yaml,
)
from gpt3_jax.config.machine import DistributedConfig, MemoryConfig, ParallelConfig
from gpt3_jax.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalsConfig,
    ModelConfig,
    OptimizerConfig,
    SourceConfig,
    TrainConfig,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DistributedConfig",
    "EvalsConfig",
    "MemoryConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "SourceConfig",
    "TrainConfig",
    "config_dir",
    "cost_settings",
    "from_dict",
    "known_keys",
    "load_config",
    "load_devices",
    "preset",
    "presets",
    "replace",
    "split_overrides",
    "to_dict",
    "to_yaml",
]
