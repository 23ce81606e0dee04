"""Evaluation by the paper's protocol: requests, the engine that answers them, prompts, scoring and tasks.

Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt3_jax.evals.evaluation import evaluate
    from gpt3_jax.evals.hook import EvaluateTasks
    from gpt3_jax.evals.scorer import score

__all__ = ["EvaluateTasks", "evaluate", "score"]

_HOMES = {"EvaluateTasks": "hook", "evaluate": "evaluation", "score": "scorer"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
