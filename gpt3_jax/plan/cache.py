"""Plans that are kept: the same configuration on the same topology, with the same code, compiles once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gpt3_jax.config import Config, to_yaml
from gpt3_jax.plan.receipt import Receipt, make_receipt, receipt_from_json, receipt_to_json, versions
from gpt3_jax.plan.step import compile_step
from gpt3_jax.plan.topologies import Topology

T = TypeVar("T")


def plan(config: Config, topology: Topology, cache: Path | None) -> tuple[Receipt, bool]:
    """The receipt of a configuration, and whether it came from the cache. A cached plan has the same configuration,
    topology, source of this package, versions of all packages involved, and compilers' flags in the environment.

    Raises:
        UserError, RunError: as `compile_step`.
    """
    return kept(
        [to_yaml(config), topology.name],
        topology,
        cache,
        lambda: make_receipt(compile_step(config, topology)),
        receipt_to_json,
        receipt_from_json,
    )


def kept(
    key: list[Any],
    topology: Topology,
    cache: Path | None,
    make: Callable[[], T],
    to_json: Callable[[T], dict[str, Any]],
    from_json: Callable[[dict[str, Any]], T],
) -> tuple[T, bool]:
    """What `make` makes, and whether it came from the cache.

    Args:
        key: what is planned. That the plan is this code's, these compilers' and these flags' is seen to here.
    """
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    whole = json.dumps([*key, versions(topology.platform), _code_version(), flags])
    path = cache / f"{hashlib.sha256(whole.encode()).hexdigest()[:24]}.json" if cache else None
    if path is not None and path.is_file():
        try:
            return from_json(json.loads(path.read_text())), True
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # unreadable or of another form: made anew
    receipt = make()
    if path is not None:
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(to_json(receipt)))
            part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):  # a plan that cannot be kept is still a plan
                part.unlink(missing_ok=True)
    return receipt, False


def default_cache() -> Path:
    """Where plans are kept: ``$XDG_CACHE_HOME/gpt3-jax/plans``, ``~/.cache`` without it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt3-jax" / "plans"


def _code_version() -> str:
    """A hash of this package's source: a plan made by other code is not this code's plan."""
    folder = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
