"""What JAX starts with in every test: eight fake CPU devices, or for `-m gpu` the machine's GPU."""

import gc
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator

import pytest
from xla_flags import start_jax, xla_flags


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module imports JAX."""
    # A shell starts what it puts into the background deaf to Ctrl-C, and so would be what the tests start.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Nothing of the user's: tests that mean to have compiled programs kept say where.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = ""
    if config.getoption("markexpr") == "gpu":
        if getattr(config.option, "numprocesses", None):
            raise pytest.UsageError("`-m gpu` needs `-n 0`: one process takes most of the GPU's memory")
        return  # JAX starts as the user's environment says, and compiles as it does for the user
    if not hasattr(config, "workerinput"):  # not in xdist's processes, which have it from the first one
        programs = tempfile.TemporaryDirectory(prefix="gpt3-jax-tests-")
        os.environ["GPT3_JAX_TEST_PROGRAMS"] = programs.name
        config.add_cleanup(programs.cleanup)
    os.environ["JAX_PLATFORMS"] = "cpu"
    # What the user has set wins. A process that a test starts inherits it, unless the test says otherwise.
    os.environ["XLA_FLAGS"] = xla_flags(8, os.environ.get("XLA_FLAGS", ""))
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        start_jax()


FIRST = (
    # JAX's profiler crashes in a process in which a plan has loaded libtpu.
    "test_bench_profile", "test_bench",
    # Half a minute and more each: no process shall be left alone with one at the end.
    "test_zero", "test_cluster_processes", "test_attention", "test_resume", "test_evals_scorer", "test_plan_schedule",
    "test_loop", "test_train_cli", "test_cluster_compilation_cache", "test_evaluate_model", "test_step",
    "test_plan_compiled", "test_plan_cli", "test_evals_hook",
)  # fmt: skip
"""Files in the order in which they begin, before all others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(FIRST)))


@pytest.fixture(scope="module", autouse=True)
def only_modules_stay() -> None:
    """No garbage collection looks again through what was imported before: reading a checkpoint asks for several. And
    what was compiled goes before it fills the process's memory mappings."""
    if "jax" in sys.modules and _mappings() > 15_000:
        sys.modules["jax"].clear_caches()
    gc.collect()
    gc.freeze()


def _mappings() -> int:
    """Linux allows a process 65,530. Each compiled program takes hundreds, a test file up to 15,000; beyond, the
    compiler ends with a segmentation fault. Elsewhere no limit is known."""
    try:
        with open("/proc/self/maps", "rb") as maps:
            return sum(1 for _ in maps)
    except FileNotFoundError:
        return 0


@pytest.fixture(autouse=True)
def said() -> Iterator[list[str]]:
    """What the project's logger says in a test. After it the logger is as before, whatever a command made of it."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.getLogger("gpt3_jax")
    before = list(logger.handlers), logger.level, logger.propagate
    logger.addHandler(Keep())
    logger.setLevel(logging.INFO)
    yield lines
    logger.handlers[:], logger.level, logger.propagate = before
