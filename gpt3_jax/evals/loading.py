"""Loads a model to evaluate, with the engine that answers for it."""

from __future__ import annotations

import os

import jax

from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.evals.engine import Engine
from gpt3_jax.evals.subject import Subject
from gpt3_jax.interop.loading import load_model
from gpt3_jax.model.params import count_params


def load(folder: str | os.PathLike[str]) -> Subject:
    """The newest checkpoint of a run, or a model in Hugging Face's format. Raises the errors of `load_model`."""
    loaded = load_model(folder)
    engine = Engine.of(loaded)
    return Subject(
        name=loaded.name,
        answer=engine.answer,
        tokenizer=loaded.tokenizer,
        config=loaded.config,
        weights=loaded.fingerprint,
        settings={"platform": jax.default_backend()},
        about={
            "folder": os.path.abspath(folder),
            "parameters": count_params(loaded.config),
            "tokens": loaded.tokens_trained,
        },
    )


def tokenizer_of(folder: str | os.PathLike[str]) -> tuple[Tokenizer, int]:
    """A model's tokenizer and the length of its context. Raises the errors of `load_model`."""
    loaded = load_model(folder)
    return loaded.tokenizer, loaded.config.n_ctx
