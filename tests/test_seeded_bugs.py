"""The tests catch bugs: with each one of `seeded_bugs.BUGS` in a copy of the package, the named test fails.

It is the test itself that runs, loaded anew against the copy.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from seeded_bugs import BUGS, Bug

import gpt3_jax
from gpt3_jax.config import config_dir

pytestmark = pytest.mark.slow  # a compilation or several for each bug

PACKAGE = Path(gpt3_jax.__file__).parent
TESTS = Path(__file__).parent
STAY = ("conftest", "seeded_bugs", Path(__file__).stem)
"""Modules of the tests that are not loaded anew: they import nothing of the package that a bug could be in."""


@pytest.fixture(scope="module", autouse=True)
def shared_compilations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a bug leaves as it was, such as the reference on one device, is compiled once for all of them."""
    wanted = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    for values in (wanted, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is wanted:
            yield


@contextmanager
def package_with(bug: Bug | None, folder: Path) -> Iterator[None]:
    """Imports of the package and of the tests give new modules, from a copy with the bug in it."""
    copy = folder / "gpt3_jax"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(config_dir(), copy / "configs")  # where a wheel has them
    if bug is not None:
        source = (copy / bug.file).read_text(encoding="utf-8")
        assert source.count(bug.line) == 1, f"{bug.file} has {source.count(bug.line)} times {bug.line!r}: renew the bug"
        (copy / bug.file).write_text(source.replace(bug.line, bug.by), encoding="utf-8")

    def ours(name: str) -> bool:
        top = name.partition(".")[0]
        return top == PACKAGE.name or (top not in STAY and (TESTS / f"{top}.py").exists())

    # What JAX has traced refers to the classes of the modules that it was traced with.
    jax.clear_caches()
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if ours(name)}
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        jax.clear_caches()
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if ours(name)]:
            del sys.modules[name]
        sys.modules.update(kept)


def run(caught_by: tuple[str, str, tuple[Any, ...]], folder: Path) -> None:
    module, function, arguments = caught_by
    test = importlib.import_module(module)
    origin = sys.modules["gpt3_jax"].__file__
    assert origin is not None and origin.startswith(str(folder)), "the test would run against the real package"
    called = getattr(test, function)
    with pytest.MonkeyPatch.context() as monkeypatch:
        fixtures = {"tmp_path": Path(tempfile.mkdtemp(dir=folder)), "monkeypatch": monkeypatch}
        called(*arguments, **{name: made for name, made in fixtures.items() if name in signature(called).parameters})


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name.replace(" ", "-") for bug in BUGS])
def test_the_bug_is_caught(bug: Bug, tmp_path: Path) -> None:
    expected: Any = pytest.raises((AssertionError, pytest.fail.Exception))  # the latter: nothing was raised
    if bug.refused:
        expected = pytest.raises((TypeError, ValueError, RuntimeError), match=f"(?s){bug.refused}")
    with package_with(bug, tmp_path), expected as caught:
        run(bug.caught_by, tmp_path)
    assert "renew the bug" not in str(caught.value) and "real package" not in str(caught.value), caught.value


@pytest.mark.parametrize(
    "caught_by", dict.fromkeys(bug.caught_by for bug in BUGS), ids=lambda c: f"{c[0]}-{c[1]}-{c[2]}"
)
def test_without_a_bug_the_test_passes(caught_by: tuple[str, str, tuple[Any, ...]], tmp_path: Path) -> None:
    with package_with(None, tmp_path):
        run(caught_by, tmp_path)
