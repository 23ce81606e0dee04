"""A function traced, lowered and compiled: how long each took, what the program needs, and its text."""

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
class Lowered:
    """A function, traced and lowered."""

    lowered: Any
    jaxpr: Any
    trace_seconds: float
    lower_seconds: float


@dataclasses.dataclass(frozen=True)
class Compiled(Lowered):
    """A function, traced, lowered and compiled."""

    run: Any
    compile_seconds: float
    bytes: int
    """On one device: arguments, results that are not written in their place, temporaries, and the program itself."""


def lower(function: Any, *arguments: Any) -> Lowered:
    """Traces and lowers a jitted function for arguments given as arrays or as `jax.ShapeDtypeStruct`."""
    started = time.perf_counter()
    traced = function.trace(*arguments)
    traced_at = time.perf_counter()
    lowered = traced.lower()
    return Lowered(lowered, traced.jaxpr, traced_at - started, time.perf_counter() - traced_at)


def compile_program(function: Any, *arguments: Any) -> Compiled:
    """Compiles a jitted function, arguments as for `lower`. JAX's persistent cache is not
    used, so that the time is the compiler's.

    Raises:
        RunError: the compiler does not know an option.
        jax.errors.JaxRuntimeError: it fails otherwise.
    """
    low = lower(function, *arguments)
    started = time.perf_counter()
    with without_cache():
        try:
            compiled = low.lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if line := refused_option(error):
                raise RunError(line) from None
            raise
    seconds = time.perf_counter() - started
    return Compiled(
        **vars(low), run=compiled, compile_seconds=seconds, bytes=bytes_on_device(compiled.memory_analysis())
    )


def bytes_on_device(stats: Any) -> int:
    """Bytes that a program needs, from the compiler's memory analysis; 0 where it gives none."""
    if stats is None:
        return 0
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    held = stats.argument_size_in_bytes + results + stats.temp_size_in_bytes
    return int(held + stats.generated_code_size_in_bytes)


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """Turns JAX's persistent compilation cache off: a cached program comes without the compiler's memory analysis."""
    before = getattr(jax.config, "jax_enable_compilation_cache", True)  # not in JAX's type stubs
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it looks at the setting once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def dump_options(folder: str) -> dict[str, Any]:
    """Compiler options that make XLA write the program, its buffer assignment and its live ranges into a folder."""
    return {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}


def dumped_text(folder: Path) -> str:
    """The one program that was compiled with `dump_options`, after all optimisations.

    Raises:
        RunError: none was written, or several.
    """
    found = sorted(folder.glob("*after_optimizations.txt"))
    if len(found) != 1:
        raise RunError(f"the compiler wrote {len(found)} programs, expected 1: the program cannot be read")
    return found[0].read_text(errors="replace")


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
    with tempfile.TemporaryDirectory(prefix="gpt3-jax-program-") as folder, without_cache():
        program.lowered.compile(compiler_options=dump_options(folder))
        return dumped_text(Path(folder))


def out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether a device or a compiler ran out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error)
