"""The configuration of a run: its settings (`schema`), and how they are read and written (`loading`)."""

from gpt3_jax.config.loading import (
    config_dir,
    cost_settings,
    from_dict,
    known_keys,
    load_config,
    preset,
    presets,
    replace,
    to_dict,
    to_yaml,
)
from gpt3_jax.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    DistributedConfig,
    MemoryConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    SourceConfig,
    TrainConfig,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DistributedConfig",
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
    "preset",
    "presets",
    "replace",
    "to_dict",
    "to_yaml",
]
