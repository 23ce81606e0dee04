"""Configurations: Table 2.1 row by row, every shipped file, and what is said to a person who mistypes."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from jax.sharding import AbstractMesh
from shipped_configs import MACHINES, shipped

import gpt3_jax
from gpt3_jax import config as config_module
from gpt3_jax.config import Config, from_dict, load_config, preset, presets, replace, to_dict, to_yaml
from gpt3_jax.config.explain import field_texts
from gpt3_jax.errors import UserError
from gpt3_jax.model.params import count_params, param_table
from gpt3_jax.parallel.mesh import AXES
from gpt3_jax.parallel.rules import partitions
from gpt3_jax.train.schedule import batch_schedule

SHIPPED = sorted(path.stem for path in config_module.config_dir().glob("*.yaml"))
MESHES = [name for name in SHIPPED if name.startswith("mesh-")]

# Table 2.1, with its two misprints corrected (13B's d_model, XL's heads); batches in sequences of 2048; and the exact
# parameter counts, which Table D.1 rounds.
TABLE_2_1 = [
    # name, layers, d_model, heads, d_head, sequences, peak lr, parameters
    ("gpt3-small", 12, 768, 12, 64, 256, 6.0e-4, 125_226_240),
    ("gpt3-medium", 24, 1024, 16, 64, 256, 3.0e-4, 355_871_744),
    ("gpt3-large", 24, 1536, 16, 96, 256, 2.5e-4, 760_300_032),
    ("gpt3-xl", 24, 2048, 16, 128, 512, 2.0e-4, 1_315_723_264),
    ("gpt3-2.7b", 32, 2560, 32, 80, 512, 1.6e-4, 2_651_553_280),
    ("gpt3-6.7b", 32, 4096, 32, 128, 1024, 1.2e-4, 6_658_404_352),
    ("gpt3-13b", 40, 5120, 40, 128, 1024, 1.0e-4, 12_853_386_240),
    ("gpt3-175b", 96, 12288, 96, 128, 1536, 0.6e-4, 174_604_259_328),
]

# Each mesh with its number of devices and bytes of memory a device; and of a file for all sizes, those that its comment
# names. The others are folders with a file for each size, which a search made (shipped_configs.py).
SIZES = [row[0] for row in TABLE_2_1]
SUITS = {
    "mesh-v4-32": (32, 32e9, SIZES[4:7]),
    "mesh-cpu-8": (8, 16e9, SIZES[:1]),
}
DEVICES = {name: row[:2] for name, row in SUITS.items()} | {
    "mesh-h100-8": (8, 80e9),
    "mesh-h100-64x8": (512, 80e9),
    "mesh-v5p-512": (512, 95e9),
    "mesh-v5e-256": (256, 16e9),
    "mesh-v6e-256": (256, 32e9),
    "mesh-h200-8": (8, 141e9),
}
COMPOSED = [(mesh, size) for mesh in MESHES for size in SUITS[mesh][2]] + shipped()


@pytest.mark.parametrize(
    ("name", "layers", "d_model", "heads", "d_head", "sequences", "peak_lr", "parameters"),
    TABLE_2_1,
    ids=[row[0] for row in TABLE_2_1],
)
def test_presets_are_table_2_1(
    name: str,
    layers: int,
    d_model: int,
    heads: int,
    d_head: int,
    sequences: int,
    peak_lr: float,
    parameters: int,
) -> None:
    config = preset(name)
    model = config.model
    assert (model.n_layers, model.d_model, model.n_heads, model.d_head) == (layers, d_model, heads, d_head)
    assert (model.d_ff, model.n_ctx, model.n_vocab) == (4 * d_model, 2048, 50257)
    assert model.attention_pattern == ("dense", "banded")
    assert config.train.batch_tokens == sequences * 2048
    assert config.train.tokens == 300_000_000_000
    assert config.optimizer.peak_lr == peak_lr
    assert config.data.tokenizer == "r50k_base"
    assert count_params(model) == parameters
    assert count_params(dataclasses.replace(model, vocab_multiple=4096)) == parameters


def test_presets_are_the_eight_sizes_in_order() -> None:
    assert presets() == tuple(row[0] for row in TABLE_2_1)
    assert [name for name in SHIPPED if name.startswith("gpt3-")] == sorted(presets())


def test_appendix_b_in_every_preset() -> None:
    for name in presets():
        optimizer = preset(name).optimizer
        assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.9, 0.95, 1e-8)
        assert (optimizer.weight_decay, optimizer.clip_norm) == (0.1, 1.0)
        assert (optimizer.warmup_tokens, optimizer.decay_tokens) == (375_000_000, 260_000_000_000)
        assert optimizer.final_lr_fraction == 0.1


def test_what_the_paper_leaves_open_has_stated_defaults() -> None:
    for name in presets():
        model, optimizer = preset(name).model, preset(name).optimizer
        assert (model.attention_pattern, model.band_width, model.residual_init) == (("dense", "banded"), 256, "2L")
        assert (optimizer.weight_decay_on, optimizer.decay_after_warmup) == ("matrices_and_embeddings", False)


def test_batch_ramps_rise_with_size_within_the_papers_bounds() -> None:
    ramps = [preset(name).train.ramp_tokens for name in presets()]
    assert ramps == sorted(ramps)
    assert (ramps[0], ramps[-1]) == (4_000_000_000, 12_000_000_000)
    assert {preset(name).train.ramp_start_tokens for name in presets()} == {32_768}


def test_what_all_sizes_share_stands_once_as_a_default() -> None:
    files = [yaml.safe_load((config_module.config_dir() / f"{name}.yaml").read_text()) for name in presets()]
    for section in files[0]:
        for key in files[0][section]:
            assert len({str(values[section].get(key)) for values in files}) > 1, f"{section}.{key}"


@pytest.mark.parametrize("figure", [300e9, 260e9, 375e6, 4e9, 12e9, 3.2e6, 5140])
def test_a_figure_of_the_paper_stands_once(figure: float) -> None:
    """In the package's code: tokens, schedule, the ramp's bounds, what Table 2.1 prints."""
    package = Path(config_module.__file__).parent.parent
    found = [
        f"{path.name}:{node.lineno}"
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value == figure
    ]
    assert len(found) == 1, found


def _whole(name: str) -> list[str]:
    """The names to load a shipped file with: a mesh file with the smallest size that it is for."""
    return [SUITS[name][2][0], name] if name in SUITS else [name]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_file_loads(name: str) -> None:
    config = load_config(_whole(name))
    assert config == load_config([config_module.config_dir() / f"{part}.yaml" for part in _whole(name)])
    if name not in SUITS:
        assert config == preset(name)


def test_every_mesh_file_is_in_the_table() -> None:
    assert sorted(SUITS) == MESHES
    folders = {path.name for path in config_module.config_dir().iterdir() if path.is_dir()}
    assert folders == set(MACHINES) and set(DEVICES) == folders | set(SUITS)
    assert not folders & set(SUITS)
    files = {(path.parent.name, path.stem) for path in config_module.config_dir().glob("*/*.yaml")}
    assert files == set(shipped())


@pytest.mark.parametrize(("mesh_name", "size"), COMPOSED)
def test_size_and_mesh_compose(mesh_name: str, size: str) -> None:
    """The mesh has as many devices as its name says, divides every parameter and every batch of the ramp, and holds
    the model's states by ZeRO's formula with a fifth of the memory to spare."""
    devices, memory = DEVICES[mesh_name]
    config = load_config([size, mesh_name])
    assert config.model == preset(size).model
    assert config.train.batch_tokens == preset(size).train.batch_tokens
    parallel = config.parallel
    assert parallel.replica * parallel.data * parallel.tensor == devices

    mesh = AbstractMesh((parallel.replica, parallel.data, parallel.tensor), AXES)
    table = param_table(config.model)
    partitions(table, mesh, zero=parallel.stage == 3)  # type: ignore[arg-type]
    partitions(table, mesh, zero=True)  # type: ignore[arg-type]

    shards = parallel.replica * parallel.data
    schedule = batch_schedule(config, shards)
    assert schedule.sizes[-1].sequences == config.train.batch_tokens // 2048
    assert all(size.sequences % (shards * size.microbatches) == 0 for size in schedule.sizes)

    n = parallel.data
    bytes_per_parameter = {0: 16, 1: 4 + 12 / n, 2: 2 + 14 / n, 3: 16 / n}[parallel.stage]
    assert bytes_per_parameter * count_params(config.model) / parallel.tensor < 0.8 * memory


def test_a_mesh_of_many_files_stands_for_that_of_the_size_beside_it(tmp_path: Path) -> None:
    """Whichever comes first, by its name or by its path; of several sizes the last counts. It only sets the mesh."""
    folder = config_module.config_dir()
    xl, small = ((folder / "mesh-h100-8" / f"gpt3-{size}.yaml") for size in ("xl", "small"))
    on_xl = load_config(["gpt3-xl", xl])
    assert on_xl.parallel != preset("gpt3-xl").parallel and on_xl.memory != load_config(["gpt3-xl", small]).memory
    ways: tuple[list[str | Path], ...] = (
        ["gpt3-xl", "mesh-h100-8"],
        ["mesh-h100-8", "gpt3-xl"],
        [folder / "gpt3-xl.yaml", "mesh-h100-8"],
        ["gpt3-xl", "mesh-h100-8/gpt3-xl"],
        ["gpt3-small", "gpt3-xl", "mesh-h100-8"],
    )
    for names in ways:
        assert load_config(names).memory == on_xl.memory and load_config(names).parallel == on_xl.parallel
        assert load_config(names).model == on_xl.model
    mine = _yaml(tmp_path, "model: {n_layers: 22}")
    assert load_config(["gpt3-xl", "mesh-h100-8", mine]).model.n_layers == 22
    assert load_config([mine, "mesh-h100-8/gpt3-xl"]).memory == on_xl.memory


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["mesh-h100-8"],
            "'mesh-h100-8' has a file for each size, and no size is named beside it; add --config with one",
        ),
        (["quickstart", "mesh-h100-8"], "for a model of your own take the settings of one: mesh-h100-8/gpt3-small"),
        (["gpt3-175b", "mesh-h100-8"], "'mesh-h100-8' has no file for gpt3-175b: a search found none that fits"),
        (["gpt3-xl", "mesh-h100-9"], "does not exist; the nearest is mesh-h100-8"),
        (["gpt3-xl", "mesh-h100-8/gpt3-x"], "does not exist"),
        (["gpt3-xl", "../configs/mesh-h100-8"], "does not exist"),
    ],
)
def test_a_mesh_that_has_no_file_for_it(names: list[str], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        load_config(names)


# ---------------------------------------------------------------------------------------------------------------
# Reading and writing
# ---------------------------------------------------------------------------------------------------------------


def _yaml(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_yaml_round_trip(name: str, tmp_path: Path) -> None:
    config = replace(
        load_config(_whole(name)),
        data={"train": (config_module.SourceConfig("a", 0.6), config_module.SourceConfig("b.bin", dtype="uint32"))},
        train={"tokens": 2**53 + 1},  # would lose its last bit as a float
        optimizer={"eps": 1e-9},
    )
    assert load_config([_yaml(tmp_path, to_yaml(config))]) == config
    assert from_dict(to_dict(config)) == config
    assert from_dict(yaml.safe_load(to_yaml(config))) == config


def test_later_files_and_then_overrides_win(tmp_path: Path) -> None:
    first = _yaml(tmp_path, "model: {n_layers: 4, d_model: 64, n_heads: 4}\ntrain: {seed: 1}", "first.yaml")
    second = _yaml(tmp_path, "model: {n_layers: 6}\ntrain: {seed: 2}", "second.yaml")
    config = load_config([first, second], ["--train.seed", "3"])
    assert (config.model.n_layers, config.model.d_model, config.train.seed) == (6, 64, 3)
    config = load_config([second, first], ["--train.seed=4", "--train.seed=5"])
    assert (config.model.n_layers, config.model.d_model, config.train.seed) == (4, 64, 5)


def test_a_later_list_of_sources_replaces_the_earlier(tmp_path: Path) -> None:
    first = _yaml(tmp_path, "data: {train: [{path: a}, {path: b}]}", "first.yaml")
    second = _yaml(tmp_path, "data: {train: [{path: c, weight: 2.0}]}", "second.yaml")
    assert load_config([first, second]).data.train == (config_module.SourceConfig("c", 2.0),)


@pytest.mark.parametrize(
    ("option", "text", "expected"),
    [
        ("train.tokens", "3e9", 3_000_000_000),
        ("train.tokens", "3.5e3", 3500),
        ("train.tokens", "3E+2", 300),
        ("train.tokens", "7", 7),
        ("optimizer.peak_lr", "1e-3", 0.001),
        ("optimizer.peak_lr", "1", 1.0),
        ("parallel.data", "-1", -1),
        ("train.tensorboard", "false", False),
        ("model.attention_pattern", "[dense]", ("dense",)),
        ("train.run_dir", "3e9", "3e9"),
    ],
)
def test_values_mean_the_same_in_files_and_on_the_command_line(
    option: str, text: str, expected: object, tmp_path: Path
) -> None:
    section, name = option.split(".")
    in_file = f"'{text}'" if isinstance(expected, str) else text
    configs = [
        load_config([], [f"--{option}", text]),
        load_config([], [f"--{option}={text}"]),
        load_config([_yaml(tmp_path, f"{section}:\n  {name}: {in_file}")]),
    ]
    for config in configs:
        value = getattr(getattr(config, section), name)
        assert value == expected
        assert type(value) is type(expected)


def test_python_interface() -> None:
    assert gpt3_jax.presets() == presets()
    assert gpt3_jax.preset("gpt3-xl") == gpt3_jax.load_config(["gpt3-xl"])
    assert gpt3_jax.Config is Config


# ---------------------------------------------------------------------------------------------------------------
# Mistakes
# ---------------------------------------------------------------------------------------------------------------

BAD_OVERRIDES = [
    (["--model.n_layer", "3"], ["--model.n_layer;", "--model.n_layers"]),
    (["--modle.n_layers", "4"], ["--modle.n_layers", "--model.n_layers"]),
    (["--peak_lr", "1e-3"], ["--peak_lr", "--optimizer.peak_lr"]),
    (["--model.n_layers", "many"], ["--model.n_layers is 'many'", "whole number"]),
    (["--model.n_layers", "3"], ["model.n_layers 3", "2 entries", "model.attention_pattern"]),
    (["--model.n_layers", "0"], ["model.n_layers is 0", "at least 1"]),
    (["--model.d_model", "100"], ["model.d_model 100", "model.n_heads 12"]),
    (["--model.attention_pattern", "[]"], ["model.attention_pattern", "empty"]),
    (["--model.attention_pattern", "[dense, sparse]"], ["model.attention_pattern", "banded", "sparse"]),
    (["--model.residual_init", "3L"], ["model.residual_init", "2L", "3L"]),
    (["--optimizer.peak_lr", "fast"], ["--optimizer.peak_lr is 'fast'", "finite number"]),
    (["--optimizer.peak_lr", "-1"], ["optimizer.peak_lr is -1", "more than 0"]),
    (["--optimizer.peak_lr", "nan"], ["--optimizer.peak_lr is 'nan'", "finite number"]),
    (["--optimizer.beta2", "1"], ["optimizer.beta2 is 1", "beta2 < 1"]),
    (["--optimizer.decay_tokens", "1e8"], ["decay_tokens 100000000", "warmup_tokens 375000000"]),
    (["--parallel.stage", "4"], ["--parallel.stage is '4'", "0, 1, 2, 3"]),
    (["--parallel.tensor", "0"], ["parallel.tensor is 0", "at least 1"]),
    (["--parallel.tensor", "5"], ["model.n_ctx 2048", "parallel.tensor 5"]),
    (["--parallel.tensor", "8"], ["model.n_heads 12", "parallel.tensor 8"]),
    (["--parallel.data", "0"], ["parallel.data is 0", "-1"]),
    (["--train.tokens", "1.5"], ["--train.tokens is '1.5'", "whole number"]),
    (["--train.batch_tokens", "5000"], ["train.batch_tokens 5000", "model.n_ctx 2048", "4096", "6144"]),
    (["--train.tensorboard", "maybe"], ["--train.tensorboard is 'maybe'", "true or false"]),
    (["--train.seed", "-1"], ["train.seed is -1", "2**32"]),
    (["--train.ramp_tokens", "9", "--train.ramp_start_tokens", "1e6"], ["ramp_start_tokens 1000000", "batch_tokens"]),
    (["--checkpoint.on_change", "ignore"], ["checkpoint.on_change", "refuse", "ignore"]),
    (["--distributed.mode", "manual"], ["distributed.coordinator", "HOST:PORT"]),
    (["--distributed.coordinator", "a:1"], ["distributed.coordinator", "distributed.mode to manual"]),
    (["3e9"], ["unexpected argument '3e9'", "--train.tokens"]),
]


@pytest.mark.parametrize(("overrides", "words"), BAD_OVERRIDES, ids=[" ".join(row[0]) for row in BAD_OVERRIDES])
def test_bad_overrides(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config([], overrides)
    _one_line_with(str(caught.value), words)


BAD_FILES = [
    ("model:\n  n_layer: 3", ["'model.n_layer'", "mine.yaml", "model.n_layers"]),
    ("optimiser:\n  peak_lr: 0.1", ["'optimiser'", "mine.yaml", "the nearest is optimizer"]),
    ("optimizer:\n  peak_lr: .nan", ["optimizer.peak_lr", "nan"]),
    ("optimizer:\n  peak_lr: .inf", ["optimizer.peak_lr", "inf"]),
    ("train:\n  tokens: null", ["train.tokens in", "mine.yaml' is null", "leave the key out"]),
    ("model: 3", ["model", "mine.yaml", "3", "n_layers"]),
    ("model: [", ["mine.yaml", "not valid", "line 1"]),
    ("- 1", ["mine.yaml", "list", "keys and values"]),
    ("train:\n  tokens: many", ["train.tokens in", "mine.yaml' is 'many'", "whole number"]),
    ("train:\n  tokens: true", ["train.tokens", "mine.yaml' is 'true'", "whole number"]),
    ("data:\n  train:\n    - paht: x", ["data.train[0].paht in", "mine.yaml", "the keys are path, weight, dtype"]),
    ("data:\n  train:\n    - path: x\n      weight: 0", ["weight of source 'x' is 0", "more than 0"]),
    ("data:\n  train:\n    - weight: 1.0", ["data.train", "path"]),
    ("data:\n  train: x", ["data.train in", "mine.yaml' is 'x'", "a list such as [{path: FOLDER"]),
]


@pytest.mark.parametrize(("text", "words"), BAD_FILES, ids=[row[0].replace("\n", " ") for row in BAD_FILES])
def test_bad_files(text: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_config([_yaml(tmp_path, text)])
    _one_line_with(str(caught.value), words)


def test_a_shipped_name_beside_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shakespeare").mkdir()  # as its own instructions make it
    assert load_config(["shakespeare"]) == preset("shakespeare")
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="'mine' is a folder; expected a YAML file"):
        load_config(["mine"])


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"train: {run_dir: \xe9}")
    for path, words in [
        ("gpt3-smal", ["'gpt3-smal'", "the nearest is gpt3-small"]),
        (tmp_path / "absent.yaml", ["absent.yaml", "does not exist"]),
        (tmp_path / "latin.yaml", ["latin.yaml", "cannot be read"]),
    ]:
        with pytest.raises(UserError) as caught:
            load_config([str(path)])
        _one_line_with(str(caught.value), words)
    with pytest.raises(UserError, match="'gpt3-13'; the nearest is gpt3-13b; there are gpt3-13b, gpt3-175b"):
        preset("gpt3-13")


def _one_line_with(message: str, words: list[str]) -> None:
    assert "\n" not in message
    assert "gpt3_jax.config" not in message, f"names a Python module: {message}"
    missing = [word for word in words if word not in message]
    assert not missing, f"{message!r} lacks {missing}"


# ---------------------------------------------------------------------------------------------------------------
# No dead settings
# ---------------------------------------------------------------------------------------------------------------


def test_every_field_is_used_outside_the_configuration() -> None:
    """A setting that nothing reads is a promise that nothing keeps: seek each as an attribute, or as a name in quotes
    that a loop hands to getattr."""
    package = Path(config_module.__file__).parent.parent
    used: set[str] = set()
    for path in package.rglob("*.py"):
        if path.parent.name == "config":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
    # What __post_init__ alone could use, a property of the configuration may: d_head reads n_heads.
    sources = "".join(path.read_text(encoding="utf-8") for path in (package / "config").glob("*.py"))
    for node in ast.walk(ast.parse(sources)):
        if isinstance(node, ast.FunctionDef) and any(
            isinstance(decorator, ast.Name) and decorator.id == "property" for decorator in node.decorator_list
        ):
            used |= {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
    dead = [key for key in config_module.known_keys() if key.split(".")[1] not in used]
    dead += [f"data.train.{f.name}" for f in dataclasses.fields(config_module.SourceConfig) if f.name not in used]
    assert not dead, f"no code reads these settings; use or remove them: {dead}"


def test_every_field_is_documented() -> None:
    """`--help` shows these texts; an option without one would be a bare name."""
    assert len(field_texts()) > len(config_module.known_keys())  # those of a source, too
    assert not [field for field, text in field_texts().items() if not text and field[0] != "Config"]
