"""Reads configurations from YAML files, dotted overrides and saved records, and writes them back."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.resources
import itertools
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_origin

import yaml

from gpt3_jax.config.machine import DistributedConfig, ParallelConfig
from gpt3_jax.config.schema import Config
from gpt3_jax.config.setting import meanings, sections
from gpt3_jax.config.values import Naming, convert, expected, types_of
from gpt3_jax.config.yaml_text import BadYaml, read_yaml
from gpt3_jax.errors import UserError
from gpt3_jax.paths import local_path

_log = logging.getLogger(__name__)

_SECTIONS = sections(Config)
_RENAMED = {meaning.was: f"{section}.{name}" for section, name, meaning in meanings(Config) if meaning.was}
_FORMER = {
    f"{section}.{name}": {was: (present, differs) for was, present, differs in meaning.values_were}
    for section, name, meaning in meanings(Config)
}
_Values = dict[str, dict[str, Any]]
"""Converted settings, by section and name."""


def config_dir() -> Path:
    """The folder of shipped configurations: beside the package in a checkout, inside it when installed."""
    inside = Path(str(importlib.resources.files("gpt3_jax"))) / "configs"
    return inside if inside.is_dir() else inside.parent.parent / "configs"


def presets() -> tuple[str, ...]:
    """Names of the paper's eight sizes (Table 2.1), smallest first."""
    return tuple(
        f"gpt3-{size}" for size in ("small", "medium", "large", "xl", "2.7b", "6.7b", "13b", "175b")
    )  # fmt: skip


def preset(name: str) -> Config:
    """The shipped configuration ``configs/NAME.yaml``.

    Raises:
        UserError: no such configuration; names the nearest.
    """
    path = config_dir() / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in config_dir().glob("*.yaml"))
        raise UserError(f"no configuration is called {name!r}{_nearest(name, known)}; there are {', '.join(known)}")
    return load_config([path])


def known_keys() -> tuple[str, ...]:
    """Every dotted key that a configuration file or an override may set."""
    return tuple(f"{section}.{name}" for section, name, _ in meanings(Config))


def load_config(paths: Sequence[str | os.PathLike[str]] = (), overrides: Sequence[str] = ()) -> Config:
    """Reads YAML files and dotted overrides such as ``["--optimizer.peak_lr", "6e-4"]``.

    A later file wins over an earlier one, an override over every file, and a later override over an earlier one.
    Old names of settings are still read, with a log message. The name of a shipped folder, such as ``mesh-h100-8``,
    stands for its file of the size that is named beside it: ``["gpt3-xl", "mesh-h100-8"]``.

    Raises:
        UserError: a file that cannot be read, an unknown key (with the nearest name), a value of the wrong type,
            an impossible value, values that contradict each other.
    """
    merged: _Values = {}
    files = [Path(local_path(path, "--config")) for path in paths]
    names = [path.name.removesuffix(".yaml") for path in files]
    for new in (*(_read_file(_find(path, names)) for path in files), _read_overrides(overrides)):
        for section, values in new.items():
            merged.setdefault(section, {}).update(values)
    return _make(merged)


def split_overrides(argv: Sequence[str], sections: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """A command's own arguments, and the dotted overrides among them with their values, as `load_config` takes them.

    Args:
        sections: those whose settings the command has (default: all). Options of others stay with its own arguments,
            so that it refuses them.
    """
    any_of = "|".join(sections) or r"\w+"
    dotted = re.compile(rf"--({any_of})\.")
    own: list[str] = []
    overrides: list[str] = []
    rest = iter(argv)
    for argument in rest:
        if not dotted.match(argument):
            own.append(argument)
            continue
        overrides.append(argument)
        if "=" not in argument:
            overrides += itertools.islice(rest, 1)
    return own, overrides


def load_devices(overrides: Sequence[str]) -> tuple[ParallelConfig | None, DistributedConfig]:
    """The mesh and the processes for a model that is trained already: sections `parallel` (None if nothing sets it) and
    `distributed` from dotted overrides. Whether the mesh divides the model is checked when it is loaded.

    Raises:
        UserError: as `load_config`.
    """
    values = _read_overrides(overrides)
    parallel = ParallelConfig(**values["parallel"]) if "parallel" in values else None
    return parallel, DistributedConfig(**values.get("distributed", {}))


def from_dict(values: Any) -> Config:
    """The inverse of `to_dict`, as strict as a YAML file. It also reads the records of earlier versions."""
    if not isinstance(values, dict):
        raise UserError(f"the saved configuration is {values!r}; expected its sections")
    return _make(_checked(values, lambda name: f"{name} in the saved configuration"))


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as dicts, lists and scalars that YAML and JSON can hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def cost_settings(config: Config) -> dict[str, Any]:
    """Settings that change the memory, traffic or time of the compiled step, other than model shape, mesh and batch."""
    return {
        name: getattr(getattr(config, section), name)
        for section, name, meaning in meanings(Config)
        if meaning.changes_cost
    }


def replace(config: Config, **sections: dict[str, Any]) -> Config:
    """A copy with some fields of some sections changed: ``replace(c, train={"tokens": 10})``."""
    changed = {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in sections.items()}
    return dataclasses.replace(config, **changed)


def _make(values: _Values) -> Config:
    return Config(**{section: _SECTIONS[section](**fields) for section, fields in values.items()})


def _find(path: Path, names: Sequence[str]) -> Path:
    """The file that a name or a path stands for; `names` are those of all files that are read."""
    if path.is_file():
        return path
    if not path.is_absolute() and ".." not in path.parts:  # even if a folder of that name exists, such as a run's
        shipped = config_dir() / path
        if (file := shipped.with_name(f"{path.name}.yaml")).is_file():
            return file
        if path.name and any(shipped.glob("*.yaml")):
            return _of_size(shipped, names)
    if path.is_dir():
        raise UserError(f"configuration file {str(path)!r} is a folder; expected a YAML file")
    known = sorted(
        {p.stem for p in config_dir().glob("*.yaml")} | {p.parent.name for p in config_dir().glob("*/*.yaml")}
    )
    raise UserError(
        f"configuration file {str(path)!r} does not exist{_nearest(path.stem, known)}; "
        f"expected a YAML file or one of {', '.join(known)}"
    )


def _of_size(folder: Path, names: Sequence[str]) -> Path:
    """A folder's file of the size that is named last."""
    there = [size for size in presets() if (folder / f"{size}.yaml").is_file()]
    asked = next((name for name in reversed(names) if name in presets()), "")
    if asked in there:
        return folder / f"{asked}.yaml"
    mesh = folder.name
    if asked:
        raise UserError(
            f"configuration {mesh!r} has no file for {asked}: a search found none that fits. It has files for "
            f"{', '.join(there)}; take a larger machine, or start from another's settings: {mesh}/{there[-1]}"
        )
    raise UserError(
        f"configuration {mesh!r} has a file for each size, and no size is named beside it; add --config with one of "
        f"{', '.join(there)}, or for a model of your own take the settings of one: {mesh}/{there[0]}"
    )


def _read_file(path: Path) -> _Values:
    try:
        values = read_yaml(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"configuration file {str(path)!r} cannot be read: {error}") from None
    except BadYaml as error:
        raise UserError(f"configuration file {str(path)!r} is not valid: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        kind = "list" if isinstance(values, list) else "single value"
        raise UserError(f"configuration file {str(path)!r} holds a {kind}; expected keys and values")
    return _checked(values, lambda name: f"{name} in {str(path)!r}")


def _checked(values: dict[str, Any], naming: Naming) -> _Values:
    found: _Values = {}
    for section, fields in values.items():
        if section not in _SECTIONS:
            raise UserError(f"unknown key {naming(repr(section))}{_nearest(section, [*_SECTIONS, *known_keys()])}")
        if not isinstance(fields, dict):
            shown = "empty" if fields is None else repr(fields)
            raise UserError(
                f"{naming(section)} is {shown}; expected the keys {', '.join(types_of(_SECTIONS[section]))}"
            )
        for name, value in fields.items():
            _put(found, f"{section}.{name}", value, naming)
    return found


def _put(values: _Values, key: str, value: Any, naming: Naming, again: bool = False) -> None:
    """Converts and stores one setting. With `again`, it may replace an earlier value."""
    section, _, name = _present_name(key).partition(".")
    hint = _hints().get(f"{section}.{name}")
    if hint is None:
        raise UserError(f"unknown key {naming(repr(key))}{_nearest(key, known_keys())}")
    fields = values.setdefault(section, {})
    if name in fields and not again:
        raise UserError(f"{naming(f'{section}.{name}')} is also set by its earlier name; keep one of them")
    fields[name] = convert(_present_value(f"{section}.{name}", value, naming), hint, f"{section}.{name}", naming)


def _present_name(key: str) -> str:
    if key not in _RENAMED:
        return key
    _tell_once(f"{key} is now called {_RENAMED[key]}; the old name still works")
    return _RENAMED[key]


def _present_value(key: str, value: Any, naming: Naming) -> Any:
    if not isinstance(value, str) or value not in _FORMER[key]:
        return value
    present, differs = _FORMER[key][value]
    _tell_once(f"{naming(key)} is {value}, which was removed; using {present} ({differs})")
    return present


@functools.cache
def _tell_once(line: str) -> None:
    _log.warning(line)


@functools.cache
def _hints() -> dict[str, Any]:
    """Types by dotted key."""
    return {f"{section}.{name}": hint for section, cls in _SECTIONS.items() for name, hint in types_of(cls).items()}


def _read_overrides(overrides: Sequence[str]) -> _Values:
    found: _Values = {}
    rest = iter(overrides)
    for argument in rest:
        if not argument.startswith("--"):
            raise UserError(f"unexpected argument {argument!r}; expected options such as --train.tokens 1e9")
        key, equals, text = argument[2:].partition("=")
        hint = _hints().get(_present_name(key))
        if hint is None:
            near = _nearest(key, known_keys()).replace(" is ", " is --")
            raise UserError(f"unknown option --{key}{near}")
        given = text if equals else next(rest, None)
        if given is None or (not equals and given.startswith("--")):
            raise UserError(f"--{key} has no value; expected {expected(hint)}")
        _put(found, key, _parsed(given, hint, key), lambda name: f"--{name}", again=True)
    return found


def _parsed(text: str, hint: Any, key: str) -> Any:
    """Parses a list as YAML. Any other value is taken as its text."""
    if get_origin(hint) is not tuple:
        return text
    try:
        value = read_yaml(text)
    except BadYaml as error:
        raise UserError(f"--{key} {text!r} is not a list: {error}; expected {expected(hint)}") from None
    return value if isinstance(value, list) else text


def _nearest(name: str, candidates: Sequence[str]) -> str:
    """``"; the nearest is 'x'"``, matched by the whole name or by its last part."""
    found = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    if not found:
        by_leaf = {candidate.rpartition(".")[2]: candidate for candidate in candidates}
        found = [by_leaf[leaf] for leaf in difflib.get_close_matches(name.rpartition(".")[2], by_leaf, n=1, cutoff=0.7)]
    return f"; the nearest is {found[0]}" if found else ""
