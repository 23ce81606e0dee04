"""GPT-3 and ZeRO, made executable in JAX.

Names are imported when they are first used, so ``import gpt3_jax`` alone does not start JAX and the command line
answers ``--help`` at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gpt3_jax import environment

if TYPE_CHECKING:
    from gpt3_jax import evals, interop, model, train
    from gpt3_jax.config import Config, load_config, preset, presets
    from gpt3_jax.errors import RunError, UserError
    from gpt3_jax.generation import generate

__version__ = "0.6.0"

__all__ = [
    "Config",
    "RunError",
    "UserError",
    "evals",
    "generate",
    "interop",
    "load_config",
    "model",
    "preset",
    "presets",
    "train",
]

# Here, because every import of the package runs this file, and it must be done before JAX starts.
environment.hush_absent_devices()

_PACKAGES = frozenset({"evals", "interop", "model", "train"})
_HOMES = {
    "Config": "gpt3_jax.config",
    "RunError": "gpt3_jax.errors",
    "UserError": "gpt3_jax.errors",
    "generate": "gpt3_jax.generation",
    "load_config": "gpt3_jax.config",
    "preset": "gpt3_jax.config",
    "presets": "gpt3_jax.config",
}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"gpt3_jax.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gpt3_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
