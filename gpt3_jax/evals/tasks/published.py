"""Finds the published files of a data set in the user's folder, and makes a task's examples from them.

A data set is looked for at any depth of the folder (``--data``), in two layouts:

- the authors' release, by the ends of its paths, such as ``BoolQ/val.jsonl`` (also compressed, with .gz or .zst);
- the Hub's: saved by the library ``datasets`` (``save_to_disk``: ``dataset_info.json`` beside .arrow files), or a
  snapshot of Parquet files (``boolq/validation-00000-of-00001.parquet``).

Two candidates that fit equally well are refused. Of two that differ only in a version in their path
(``anli_v0.1``, ``anli_v1.0``) the newer is taken. A file under another name is given by the settings `test_file` and
`train_file`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from gpt3_jax.cluster.log import log
from gpt3_jax.data.compressed import SUFFIXES
from gpt3_jax.data.files import is_folder, read_errors, regular
from gpt3_jax.errors import UserError
from gpt3_jax.evals.tasks import rows
from gpt3_jax.evals.tasks.item import Item, Items
from gpt3_jax.evals.tasks.task import Open, Source, Task, Value

FILES = {"test_file": "", "train_file": ""}
"""Options of a task that is read from published files."""
OPEN_FILES = (
    Open("test_file", "Which file holds the evaluated split; the default is the one found in --data.", path=True),
    Open("train_file", "Which file holds the demonstrations; the default is the one found in --data.", path=True),
)
"""Settings of a task that is read from published files."""


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a data set, by the names under which it is published."""

    name: str
    """As the Hub calls it, such as "validation"."""
    files: tuple[str, ...]
    """Ends of paths in the authors' release, the preferred first. ``*`` stands for anything within a name, ``**/`` for
    any number of folders. Upper and lower case are the same."""
    many: bool = False
    """Whether all files that match in one folder are the split together, as in RACE."""


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set as it is published: the splits that a task takes, and the Hub's names."""

    test: Split
    """What is evaluated."""
    train: Split | None
    """Where demonstrations are drawn from; None: from `test`."""
    hub: tuple[tuple[str, str], ...] = ()
    """(data set, configuration) on the Hub, such as ("super_glue", "boolq"). Owners are left out. An empty
    configuration stands for any."""


@dataclasses.dataclass(frozen=True)
class Found:
    """The files of one split."""

    split: str
    """"test" or "train"."""
    files: tuple[str, ...]
    hub: bool
    """Whether they are Arrow or Parquet, whose rows have the Hub's fields."""

    def rows(self) -> Iterator[rows.Row]:
        """The rows of all files, as `gpt3_jax.evals.tasks.rows.objects` reads them."""
        for path in self.files:
            yield from rows.objects(path)

    def __str__(self) -> str:
        return self.files[0] if len(self.files) == 1 else f"{os.path.dirname(self.files[0])} ({len(self.files)} files)"


Read = Callable[[Found, Mapping[str, Value]], Iterable[Item | None]]
"""Makes a split's examples; None for a row without a label, which is left out and counted."""


def task(
    name: str,
    data_set: DataSet,
    read: Read,
    *,
    options: Mapping[str, Value] | None = None,
    open: tuple[Open, ...] = (),
    **fields: Any,
) -> Task:
    """The entry of a task that is read from published files, with the settings `test_file` and `train_file`.

    Args:
        fields: the other fields of `Task`.
    """
    train = data_set.train
    return Task(
        name=name,
        load=functools.partial(load, name, data_set, read),
        missing=functools.partial(missing, name, data_set),
        options={**(options or {}), **FILES},
        open=(*open, *OPEN_FILES),
        splits=(data_set.test.name, train.name if train else "itself"),
        **fields,
    )


def missing(name: str, data_set: DataSet, source: Source, options: Mapping[str, Value]) -> str | None:
    """One line if the evaluated split is not there: the `missing` of a task's entry."""
    found = find(name, data_set, "test", source, options)
    return found if isinstance(found, str) else None


def load(name: str, data_set: DataSet, read: Read, source: Source, options: Mapping[str, Value]) -> Items:
    """The examples of a task: the `load` of its entry, after `name`, `data_set` and `read`.

    Raises:
        UserError: the evaluated split is not there, is there twice, or has a row that is wrong or none with a label.
        RunError: a file cannot be read.
    """
    found = find(name, data_set, "test", source, options)
    if isinstance(found, str):
        raise UserError(found)
    test = _items(name, found, read, options)
    if not test:
        raise UserError(f"task {name}: {found} has no row with a label; give the split that has labels")
    if data_set.train is None and not options["train_file"]:
        return Items(test, test, str(found))
    demonstrations = find(name, data_set, "train", source, options)
    if isinstance(demonstrations, str):
        return Items(test, None, f"{found} ({demonstrations})")
    return Items(test, _items(name, demonstrations, read, options), f"{found}, {demonstrations}")


def _items(name: str, found: Found, read: Read, options: Mapping[str, Value]) -> list[Item]:
    made = list(read(found, options))
    items = [item for item in made if item is not None]
    seen: dict[str, int] = {}
    for number, item in enumerate(items):
        if item.id in seen:  # results are kept by it, and demonstrations drawn by it
            items[number] = dataclasses.replace(item, id=f"{item.id} ({seen[item.id] + 1})")
        seen[item.id] = seen.get(item.id, 0) + 1
    if len(items) < len(made):
        log.info(f"task {name}: {len(made) - len(items)} of {len(made)} rows of {found} have no label and are left out")
    log.info(f"task {name}: {found.split} items in {found}: {len(items):,}")
    return items


def find(name: str, data_set: DataSet, split: str, source: Source, options: Mapping[str, Value]) -> Found | str:
    """The files of a split ("test" or "train"), or one line that says what was looked for and where.

    Raises:
        UserError: the folder is not there, several candidates fit, or a file that the settings name is not there.
    """
    wanted = data_set.test if split == "test" else data_set.train or data_set.test
    if given := str(options[f"{split}_file"]):
        return _given(f"{name}.{split}_file", given, split, wanted)
    names = [*wanted.files, *(f"the Hub's {of} {config}".strip() + f" ({wanted.name})" for of, config in data_set.hub)]
    what = f"task {name}: no {split} split"
    if source.data is None:
        return f"{what}: give its folder with --data (in training evals.data), or --set {name}.{split}_file=PATH"
    candidates = [
        *_released(source.data, source.files, wanted),
        *_on_hub(source.data, source.files, data_set.hub, wanted.name),
    ]
    if not candidates:
        return f"{what} in {source.data}; looked for {' or '.join(names)}"
    if len(candidates) == 1:
        return Found(split, *candidates[0])
    newest = _newest([files[0] for files, _ in candidates])
    if newest is None:
        there = ", ".join(str(Found(split, *each)) for each in candidates)
        raise UserError(
            f"task {name}: {source.data} has {len(candidates)} candidates for the {split} split: {there}; name one "
            f"with --set {name}.{split}_file=PATH"
        )
    found = Found(split, *candidates[newest])
    log.info(f"task {name}: {found} is the newest of {len(candidates)} versions of the {split} split")
    return found


def companion(path: str, name: str, what: str) -> str:
    """A file that belongs beside `path`, also compressed. `what` names it in the error if it is not there."""
    folder = os.path.dirname(path)
    for suffix in ("", *SUFFIXES):
        if os.path.exists(beside := os.path.join(folder, name + suffix)):
            return beside
    raise UserError(f"{path}: its {what} are not there; expected {name} beside it")


def _given(setting: str, path: str, split: str, wanted: Split) -> Found:
    """A file that the settings name, or a folder: one that ``datasets`` saved, or the files of a split of many."""
    if not is_folder(path):
        regular(path)
        return Found(split, (path,), _is_table(path))
    with read_errors(path):
        inside = sorted(os.listdir(path))
    if tables := [each for each in inside if _is_table(each)]:
        return Found(split, tuple(os.path.join(path, each) for each in tables), True)
    endings = [pattern.rpartition("/")[2] for pattern in wanted.files]
    if wanted.many and (few := [each for each in inside if any(_matches(each, ending) for ending in endings)]):
        return Found(split, tuple(os.path.join(path, each) for each in few), False)
    raise UserError(f"{setting} {path} is a folder without .arrow or .parquet files; give a file")


def _is_table(path: str) -> bool:
    return path.lower().endswith((".arrow", ".parquet"))


# ---- the authors' releases

Candidate = tuple[tuple[str, ...], bool]


def _released(root: str, files: Sequence[str], wanted: Split) -> list[Candidate]:
    """What matches the first pattern that anything matches."""
    own = os.path.basename(os.path.abspath(root))
    for pattern in wanted.files:
        matching = [each for each in files if _matches(f"{own}/{each}", pattern)]
        plain = {rows.plain_name(each) for each in matching if not each.lower().endswith(SUFFIXES)}
        # A compressed copy beside the plain file is the same file.
        matching = [
            each for each in matching if not (each.lower().endswith(SUFFIXES) and rows.plain_name(each) in plain)
        ]
        if not matching:
            continue
        paths = [os.path.join(root, each) for each in matching]
        if not wanted.many:
            return [((path,), False) for path in paths]
        folders: dict[str, list[str]] = {}
        for path in paths:
            folders.setdefault(os.path.dirname(path), []).append(path)
        return [(tuple(sorted(each, key=_natural)), False) for each in folders.values()]
    return []


def _matches(path: str, pattern: str) -> bool:
    """Whether the path ends in the pattern, with or without the ending of a compressed file."""
    return bool(_expression(pattern).search(path.replace(os.sep, "/")))


@functools.cache
def _expression(pattern: str) -> re.Pattern[str]:
    parts = [
        "(?:[^/]+/)*" if part == "**" else "[^/]*".join(map(re.escape, part.split("*"))) + "/"
        for part in pattern.split("/")
    ]
    compressed = "|".join(map(re.escape, SUFFIXES))
    return re.compile(f"(?:^|/){''.join(parts).removesuffix('/')}(?:{compressed})?$", re.IGNORECASE)


def _natural(path: str) -> list[tuple[int, str]]:
    """A key that puts 2.txt before 10.txt."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


_VERSION = re.compile(r"\d+(?:\.\d+)+")


def _newest(paths: Sequence[str]) -> int | None:
    """The index of the path with the highest version; None if they differ in more than versions."""
    if len({_VERSION.sub("#", path) for path in paths}) > 1:
        return None
    versions = [[tuple(map(int, version.split("."))) for version in _VERSION.findall(path)] for path in paths]
    return max(range(len(paths)), key=versions.__getitem__)


# ---- the Hub's layouts

_SHARD = re.compile(r"^(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet$")


_NO_CONFIGURATION = ("default", "plain_text")
"""What the Hub calls the configuration of a data set that has only one."""
_FOLDERS = ("data", *_NO_CONFIGURATION)
"""Folders of its files."""


def _on_hub(root: str, files: Sequence[str], names: Sequence[tuple[str, str]], split: str) -> list[Candidate]:
    """What is there of the first data set and configuration of which anything is."""
    for data_set, configuration in names:
        saved = (_saved(root, each, data_set, configuration, split) for each in files)
        found = [each for each in saved if each is not None]
        found += _snapshots(root, files, data_set, configuration, split)
        if found:
            return found
    return []


def _saved(root: str, path: str, data_set: str, configuration: str, split: str) -> Candidate | None:
    """A split that ``save_to_disk`` wrote: state.json has its name and its files, dataset_info.json the data set's. A
    set that was changed before it was saved can have lost its names; then its folders say what it is."""
    folder, name = os.path.split(path)
    if name != "state.json":
        return None
    state, info = (_json(os.path.join(root, folder, each)) for each in (name, "dataset_info.json"))
    if not isinstance(state.get("_data_files"), list) or (state.get("_split") or os.path.basename(folder)) != split:
        return None
    names = [str(info[key]) for key in ("dataset_name", "builder_name") if info.get(key)]
    config = str(info.get("config_name") or "")
    above = _above(root, folder)
    here = config or (configuration if configuration in (*above, *_NO_CONFIGURATION) else "")
    if _normal(data_set) not in map(_normal, names if config else above) or configuration not in ("", here):
        return None
    return tuple(os.path.join(root, folder, str(each.get("filename"))) for each in state["_data_files"]), True


def _snapshots(root: str, files: Sequence[str], data_set: str, configuration: str, split: str) -> list[Candidate]:
    """Parquet files as the Hub keeps them: CONFIGURATION/SPLIT-00000-of-00001.parquet, or SPLIT/0000.parquet, below a
    folder with the data set's name."""
    folders: dict[str, list[tuple[str, int]]] = {}
    for path in files:
        folder, name = os.path.split(path)
        above, last = os.path.split(folder)
        shard = _SHARD.match(name)
        if shard and shard["split"] == split:
            folders.setdefault(above if last == split else folder, []).append((path, int(shard["count"])))
        elif re.fullmatch(r"\d{4}\.parquet", name) and last == split:
            folders.setdefault(above, []).append((path, 0))
    found: list[Candidate] = []
    for folder, parts in folders.items():
        names = _above(root, folder)
        own = names[-1] in _FOLDERS or "snapshots" in names[-2:-1] or _normal(names[-1]) == _normal(data_set)
        fits = configuration in ("", names[-1]) or (configuration in _NO_CONFIGURATION and own)
        if not fits or _normal(data_set) not in map(_normal, names):
            continue
        for path, count in parts:
            if count and count != len(parts):
                raise UserError(
                    f"{os.path.join(root, path)} is one of {count} parts, of which {len(parts)} are there; "
                    "fetch the others"
                )
        found.append((tuple(sorted(os.path.join(root, path) for path, _ in parts)), True))
    return found


def _above(root: str, folder: str) -> list[str]:
    """The names of a folder below `root` and of all above it."""
    return os.path.abspath(os.path.join(root, folder)).split(os.sep)


def _normal(name: str) -> str:
    """A name without its owner, its case and its signs: ``datasets--aps--super_glue`` is ``superglue``."""
    return re.sub(r"[^a-z0-9]", "", re.split(r"--|___|/", name.lower())[-1])


def _json(path: str) -> dict[str, Any]:
    """A JSON object of a file that may be something else."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
