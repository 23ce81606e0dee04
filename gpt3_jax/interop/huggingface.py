"""Reads and writes models in Hugging Face's format: a folder with config.json and model.safetensors.

The architecture is GPT-2's if every layer is dense, GPT-Neo's if some are banded. Needs `safetensors` (the extra `hf`),
and `torch` only to read an old pytorch_model.bin.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from gpt3_jax.config import ModelConfig, ParallelConfig
from gpt3_jax.data.files import is_file
from gpt3_jax.environment import start_devices
from gpt3_jax.errors import RunError, UserError, require_type
from gpt3_jax.interop.folding import fold_biases
from gpt3_jax.interop.names import IGNORED, PREFIX, Layout, from_tensors, layout, tensors, to_tensors, without_place
from gpt3_jax.interop.weight_files import Read, Shapes, open_weights, read_json, write_weights
from gpt3_jax.model.params import Params, names, param_table
from gpt3_jax.paths import local_path
from gpt3_jax.train.state import parameter_shardings

_CONFIG = "config.json"

# Values for keys that a config.json lacks: the defaults of Hugging Face's configuration classes.
_DEFAULTS: dict[Layout, dict[str, Any]] = {
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "n_inner": None},
    "gpt_neo": {
        "num_layers": 24, "hidden_size": 2048, "num_heads": 16, "max_position_embeddings": 2048,
        "intermediate_size": None, "window_size": 256, "attention_types": [[["global", "local"], 12]],
    },
}  # fmt: skip
_SHARED_DEFAULTS = {
    "vocab_size": 50257, "layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "activation_function": "gelu_new",
}  # fmt: skip
_COUNTS: dict[Layout, tuple[str, ...]] = {
    "gpt2": ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size"),
    "gpt_neo": ("num_layers", "hidden_size", "num_heads", "max_position_embeddings", "window_size", "vocab_size"),
}
# Other names of the same keys that Hugging Face's classes also accept.
_ALIASES: dict[Layout, dict[str, str]] = {
    "gpt2": {
        "hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    "gpt_neo": {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
}  # fmt: skip
# Settings that this model supports only in part: the key, and the supported values. (`reorder_and_upcast_attn` changes
# the order of the same arithmetic, which is in fp32 here too.)
_REQUIRED: dict[str, tuple[Any, ...]] = {
    # Names of the same function, the tanh approximation of GELU. Not gelu, which uses erf.
    "activation_function": ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
_SIXTEEN_BITS = ("bfloat16", "float16")
_KINDS = {"global": "dense", "local": "banded"}


def is_hf(folder: Path) -> bool:
    """Whether a folder looks like a model in Hugging Face's format."""
    return is_file(folder / _CONFIG)


def from_hf(
    path: str | os.PathLike[str],
    *,
    mesh: Mesh | None = None,
    parallel: ParallelConfig = ParallelConfig(),
    each: Callable[[str, jax.Array], jax.Array] | None = None,
) -> tuple[ModelConfig, Params]:
    """Reads a GPT-2 or GPT-Neo language model from a folder in Hugging Face's format; parameters in fp32.

    The compute dtype is bfloat16 if the weights were saved in 16 bits, otherwise float32. Settings that the format does
    not record (`position_init_std`, `residual_init`, `vocab_multiple`) take their defaults.

    Args:
        mesh: where to load to; the host holds all parameters on the way. None: the default device.
        parallel: with a mesh, its stage says how the parameters are sharded, as in training.
        each: gets every parameter with its name (``blocks/qkv_kernel``), in fp32, and returns what takes its place.
            They are placed one after another, the largest first.

    Raises:
        UserError: files are missing or unreadable; the architecture or a setting is not supported; tensors are missing,
            unknown or of another shape; a dimension that the axes of the mesh do not divide.
    """
    require_type("the model's folder", path, (str, os.PathLike), "a path")
    folder = Path(local_path(path, "model folder"))
    start_devices()
    config, kind, settings = _read_config(folder)
    shardings = parameter_shardings(config, mesh, parallel.stage) if mesh is not None else None
    with open_weights(folder) as (shapes, read):
        shapes, read = _prefixed(shapes, read)
        shapes, read = _tied(shapes, read, settings.get("tie_word_embeddings", True), folder)
        _check_tensors(shapes, config, kind, folder)
        arrays = from_tensors(read, config, kind)
    table = param_table(config)
    where = [None] * len(names(table)) if shardings is None else shardings.leaves()
    wanted = dict(zip(names(table), where, strict=True))
    placed: dict[str, jax.Array] = {}
    keep = (lambda _, array: array) if each is None else each
    for name in sorted(wanted, key=lambda name: arrays[name].size, reverse=True):
        # No name holds what was placed, so that it is gone when the next is placed.
        placed[name] = keep(name.replace(".", "/"), _placed(arrays.pop(name), wanted[name]))
    return config, jax.tree.unflatten(jax.tree.structure(table), [placed[name] for name in wanted])


def _placed(array: np.ndarray, sharding: Sharding | None) -> jax.Array:
    if sharding is None:
        return jnp.asarray(array)
    # Each process gives its own shards; device_put would compare the whole arrays of all processes.
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def config_from_hf(folder: Path) -> ModelConfig:
    """The configuration alone, from config.json. Raises UserError if it is none of GPT-2 or GPT-Neo."""
    return _read_config(folder)[0]


def _read_config(folder: Path) -> tuple[ModelConfig, Layout, dict[str, Any]]:
    settings = read_json(folder / _CONFIG)
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        raise UserError(f"{folder / _CONFIG}: model_type is {kind!r}; expected gpt2 or gpt_neo")
    for alias, key in _ALIASES[kind].items():
        if alias in settings:
            settings.setdefault(key, settings[alias])
    return _model_config(_SHARED_DEFAULTS | _DEFAULTS[kind] | settings, kind, folder / _CONFIG), kind, settings


def to_hf(params: Params, config: ModelConfig, path: str | os.PathLike[str]) -> None:
    """Writes a folder that Hugging Face's `from_pretrained` reads: config.json and model.safetensors, in fp32.

    The folder appears complete or not at all. It holds no tokenizer. End-of-text is recorded as the last token of the
    vocabulary, as in this project's tokenizers.

    Raises:
        UserError: the folder is not empty, or the format cannot hold the parameters. (GPT-Neo has no biases of queries,
            keys and values. They are folded into other parameters, which a singular query matrix prevents.)
        RunError: the folder cannot be written.
    """
    require_type("params", params, Params, "a gpt3_jax.model.Params")
    require_type("config", config, ModelConfig, "a ModelConfig: the section `model` of a Config")
    require_type("the model's folder", path, (str, os.PathLike), "a path")
    folder = Path(local_path(path, "model folder"))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{str(folder)!r} exists and is not an empty folder; choose another to write the model into")
    kind = layout(config)
    by_name = dict(zip(names(params), jax.tree.leaves(params), strict=True))
    if any(bool(jnp.any(by_name[name])) for name in without_place(config, kind)):
        params = fold_biases(params, config)
    arrays = to_tensors(params, config, kind)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            partial.chmod(0o755)
            (partial / _CONFIG).write_text(json.dumps(_hf_config(config, kind), indent=2) + "\n", encoding="utf-8")
            write_weights(arrays, partial)
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise RunError(f"could not write {str(folder)!r}: {error.strerror}") from error


def _model_config(settings: dict[str, Any], kind: Layout, path: Path) -> ModelConfig:
    for key, known in _REQUIRED.items():
        if settings.get(key, known[0]) not in known:
            raise UserError(f"{path}: {key} is {settings[key]!r}; this model has only {known[0]!r}")
    for key in _COUNTS[kind]:
        if not isinstance(settings[key], int) or isinstance(settings[key], bool) or settings[key] < 1:
            raise UserError(f"{path}: {key} is {settings[key]!r}; expected a whole number of at least 1")
    for key in ("layer_norm_epsilon", "initializer_range"):
        if not isinstance(settings[key], (int, float)) or isinstance(settings[key], bool):
            raise UserError(f"{path}: {key} is {settings[key]!r}; expected a number")
    width_key, ff_key = ("n_embd", "n_inner") if kind == "gpt2" else ("hidden_size", "intermediate_size")
    if settings[ff_key] not in (None, 4 * settings[width_key]):
        raise UserError(
            f"{path}: {ff_key} is {settings[ff_key]}; this model's MLP is 4 × {width_key} wide, "
            f"which is {4 * settings[width_key]}"
        )
    shared: dict[str, Any] = {
        "n_vocab": settings["vocab_size"],
        "norm_eps": settings["layer_norm_epsilon"],
        "init_std": settings["initializer_range"],
        "dtype": "bfloat16" if settings.get("dtype", settings.get("torch_dtype")) in _SIXTEEN_BITS else "float32",
    }
    if kind == "gpt2":
        return ModelConfig(
            n_layers=settings["n_layer"],
            d_model=settings["n_embd"],
            n_heads=settings["n_head"],
            n_ctx=settings["n_positions"],
            attention_pattern=("dense",),
            **shared,
        )
    return ModelConfig(
        n_layers=settings["num_layers"],
        d_model=settings["hidden_size"],
        n_heads=settings["num_heads"],
        n_ctx=settings["max_position_embeddings"],
        attention_pattern=_pattern(settings, path),
        band_width=settings["window_size"],
        **shared,
    )


def _pattern(settings: dict[str, Any], path: Path) -> tuple[Any, ...]:
    """The shortest pattern that repeats to the list of layers."""
    types = settings["attention_types"] or _DEFAULTS["gpt_neo"]["attention_types"]
    try:
        layers = tuple(_KINDS[kind] for kinds, times in types for _ in range(times) for kind in kinds)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: attention_types is {types!r}; expected e.g. [[['global', 'local'], 12]]") from None
    count = settings["num_layers"]
    if len(layers) != count:
        raise UserError(f"{path}: attention_types names {len(layers)} layers, num_layers is {count}; they must agree")
    lengths = (n for n in range(1, count + 1) if count % n == 0 and layers == layers[:n] * (count // n))
    return layers[: next(lengths)]


def _hf_config(config: ModelConfig, kind: Layout) -> dict[str, Any]:
    shared = {
        "model_type": kind,
        "vocab_size": config.n_vocab,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.init_std,
        "tie_word_embeddings": True,
        "bos_token_id": config.n_vocab - 1,
        "eos_token_id": config.n_vocab - 1,
        "dtype": "float32",
        "torch_dtype": "float32",  # the key that transformers 4 reads
    }
    if kind == "gpt2":
        return shared | {
            "architectures": ["GPT2LMHeadModel"],
            "n_layer": config.n_layers,
            "n_embd": config.d_model,
            "n_head": config.n_heads,
            "n_positions": config.n_ctx,
            "n_ctx": config.n_ctx,
            # GPT-3 trains without dropout. Hugging Face's default is 0.1.
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }
    their_kinds = {ours: theirs for theirs, ours in _KINDS.items()}
    period = [their_kinds[layer] for layer in config.attention_pattern]
    times = config.n_layers // len(period)
    return shared | {
        "architectures": ["GPTNeoForCausalLM"],
        "num_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_heads": config.n_heads,
        "max_position_embeddings": config.n_ctx,
        "window_size": config.band_width,
        "attention_types": [[period, times]],
        "attention_layers": period * times,
        "resid_dropout": 0.0,
        "embed_dropout": 0.0,
        "attention_dropout": 0.0,
    }


def _prefixed(shapes: Shapes, read: Read) -> tuple[Shapes, Read]:
    """Shapes and reader under the names of a language model. Files of the bare model omit the prefix."""
    own = {name if name.startswith((PREFIX, "lm_head.")) else PREFIX + name: name for name in shapes}
    return {name: shapes[own[name]] for name in own}, lambda name: read(own[name])


def _tied(shapes: Shapes, read: Read, tied: object, folder: Path) -> tuple[Shapes, Read]:
    """Shapes and reader with one output matrix, under the embedding's name. A file may hold either name, or both."""
    embedding, head = PREFIX + "wte.weight", "lm_head.weight"
    if head not in shapes:
        if not tied:
            raise UserError(
                f"{folder / _CONFIG}: tie_word_embeddings is {tied!r} and there is no tensor {head}; expected true, or "
                "that tensor"
            )
        return shapes, read
    without = {name: shape for name, shape in shapes.items() if name != head}
    if embedding in shapes:
        if shapes[head] != shapes[embedding] or not np.array_equal(read(head), read(embedding)):
            raise UserError(f"{head} in {str(folder)!r} differs from wte.weight; this model's output is tied to it")
        return without, read
    if not tied:
        return without, read  # the check for tensors then reports that the embedding is missing
    # safetensors.torch.save_model keeps only one of the two names of a shared tensor.
    return without | {embedding: shapes[head]}, lambda name: read(head if name == embedding else name)


def _check_tensors(shapes: Shapes, config: ModelConfig, kind: Layout, folder: Path) -> None:
    expected = {tensor.name: shape for _, _, tensor, shape in tensors(config, kind)}
    for name, shape in expected.items():
        if name not in shapes:
            raise UserError(f"{str(folder)!r} has no tensor {name}, which its {_CONFIG} calls for")
        if shapes[name] != shape:
            raise UserError(
                f"{name} in {str(folder)!r} has shape {list(shapes[name])}, its {_CONFIG} calls for {list(shape)}"
            )
    for name in shapes.keys() - expected.keys():
        if not name.endswith(IGNORED):
            raise UserError(f"{str(folder)!r} has a tensor {name} that this model has no place for")
