"""Marks of tests that compile for hardware that is not there: skipped, with what to install, where its compiler is
missing."""

from __future__ import annotations

import importlib.util

import pytest

from gpt3_jax.plan.gpu_targets import TARGETS


def _needs(what: str, extra: str, *modules: str) -> pytest.MarkDecorator:
    """Skips where none of the modules is installed."""
    missing = all(importlib.util.find_spec(module) is None for module in modules)
    return pytest.mark.skipif(missing, reason=f"needs {what}: pip install -c constraints.txt -e '.[{extra}]'")


NEEDS_TPU = _needs("the TPU compiler", "plan", "libtpu")
NEEDS_GPU = _needs("the CUDA plugin", "cuda", "jax_cuda13_plugin", "jax_cuda12_plugin")


def needs_compiler_of(topology: str) -> pytest.MarkDecorator:
    """The mark for a topology's name, such as ``v5p:8x8x8``."""
    return NEEDS_GPU if topology.partition(":")[0] in TARGETS else NEEDS_TPU
