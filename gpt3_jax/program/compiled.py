"""A compiled program: how long the compiler took, what it needs, and its text."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from gpt3_jax.cluster.device_errors import refused_option
from gpt3_jax.errors import RunError


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A function, traced, lowered and compiled."""

    run: Any
    lowered: Any
    jaxpr: Any
    trace_seconds: float
    lower_seconds: float
    compile_seconds: float
    bytes: int
    """On one device: arguments, results that are not written in their place, temporaries, and the program itself."""


def compile_program(function: Any, *arguments: Any) -> Compiled:
    """Compiles a jitted function for arguments given as arrays or as `jax.ShapeDtypeStruct`. Never taken from JAX's
    persistent cache: the time is the compiler's.

    Raises:
        RunError: the compiler does not know an option.
        jax.errors.JaxRuntimeError: it fails otherwise.
    """
    started = time.perf_counter()
    traced = function.trace(*arguments)
    traced_at = time.perf_counter()
    lowered = traced.lower()
    lowered_at = time.perf_counter()
    with without_cache():
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if line := refused_option(error):
                raise RunError(line) from None
            raise
    done = time.perf_counter()
    return Compiled(
        compiled,
        lowered,
        traced.jaxpr,
        traced_at - started,
        lowered_at - traced_at,
        done - lowered_at,
        bytes_on_device(compiled.memory_analysis()),
    )


def bytes_on_device(stats: Any) -> int:
    """From the compiler's account; 0 where it gives none."""
    if stats is None:
        return 0
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    held = stats.argument_size_in_bytes + results + stats.temp_size_in_bytes
    return int(held + stats.generated_code_size_in_bytes)


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """JAX's persistent compilation cache off: what is found in there comes without the compiler's account of it."""
    before = getattr(jax.config, "jax_enable_compilation_cache", True)  # not in JAX's type stubs
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it looks at the setting once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def text(program: Compiled) -> str:
    """The program after all optimisations. Some versions cannot print a TPU's; then it is compiled once more, and
    written out by the compiler itself.

    Raises:
        RunError: neither works.
    """
    try:
        return str(program.run.as_text())
    except jax.errors.JaxRuntimeError:
        pass
    with tempfile.TemporaryDirectory(prefix="gpt3-jax-bench-") as folder, without_cache():
        program.lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        found = sorted(Path(folder).glob("*after_optimizations.txt"))
        if len(found) != 1:
            raise RunError(f"the compiler wrote {len(found)} programs, expected 1: the profile cannot be read")
        return found[0].read_text(errors="replace")
