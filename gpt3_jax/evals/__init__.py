"""Evaluation by the paper's protocol: requests, the engine that answers them, prompts, scoring and tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt3_jax.evals.evaluation import evaluate

__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    if name == "evaluate":  # imported when it is first used: prompts can be shown without JAX
        from gpt3_jax.evals.evaluation import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
