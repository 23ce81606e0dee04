"""Reads Hugging Face weights tensor by tensor, from safetensors files or an old pytorch_model.bin."""

from __future__ import annotations

import contextlib
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from gpt3_jax.errors import RunError, UserError

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TORCH, _TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

Shapes = dict[str, tuple[int, ...]]
Read = Callable[[str], np.ndarray]
"""Reads a tensor by name, in fp32."""


@contextlib.contextmanager
def open_weights(folder: Path) -> Iterator[tuple[Shapes, Read]]:
    """Shapes of the tensors in the folder by name, and a function that reads one.

    Raises:
        UserError: there are no weights, or a file is missing, broken, or needs a library that is not installed.
    """
    with contextlib.ExitStack() as stack:
        if (folder / _WEIGHTS).is_file():
            yield _open_safetensors([folder / _WEIGHTS], stack)
        elif (folder / _INDEX).is_file():
            yield _open_safetensors(_shards(folder / _INDEX), stack)
        elif (folder / _TORCH).is_file():
            yield _open_torch([folder / _TORCH])
        elif (folder / _TORCH_INDEX).is_file():
            yield _open_torch(_shards(folder / _TORCH_INDEX))
        else:
            raise UserError(f"{str(folder)!r} holds no weights; expected {_WEIGHTS} or {_TORCH}, or their index")


def write_weights(arrays: Mapping[str, np.ndarray], folder: Path) -> None:
    """Writes model.safetensors. Raises RunError if it cannot be written, UserError without safetensors."""
    safetensors = _safetensors()
    try:
        # transformers 4 refuses files without this metadata.
        safetensors.numpy.save_file(dict(arrays), folder / _WEIGHTS, metadata={"format": "pt"})
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"could not write {folder / _WEIGHTS}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file. Raises UserError if the file is missing or holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); expected a folder in Hugging Face's format"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}; expected keys and values")
    return values


def _shards(index: Path) -> list[Path]:
    """The files that an index lists."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index} has no weight_map; expected names of tensors and of the files that hold them")
    return [index.parent / file for file in sorted(set(names.values()))]


def _open_safetensors(files: list[Path], stack: contextlib.ExitStack) -> tuple[Shapes, Read]:
    safetensors = _safetensors()
    handles: dict[str, Any] = {}
    shapes: Shapes = {}
    for file in files:
        try:
            # The flax framework, because numpy has no bfloat16.
            handle = stack.enter_context(safetensors.safe_open(file, framework="flax"))
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{file} cannot be read: {error}; copy it again") from None
        for name in handle.keys():  # noqa: SIM118 (not a dict)
            handles[name] = handle
            shapes[name] = tuple(handle.get_slice(name).get_shape())
    return shapes, lambda name: np.asarray(handles[name].get_tensor(name).astype(jnp.float32))


def _open_torch(files: list[Path]) -> tuple[Shapes, Read]:
    state: dict[str, Any] = {}
    for path in files:
        try:
            import torch
        except ImportError as error:
            raise UserError(
                f"{path} needs torch to be read ({error}); pip install -c constraints.txt -e '.[hf]'"
            ) from None
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}; copy it again") from None
        if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
            raise UserError(f"{path} does not hold tensors by their names; expected a model's state_dict")
        state |= found
    return {name: tuple(tensor.shape) for name, tensor in state.items()}, lambda name: state[name].float().numpy()


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise UserError(
            f"Hugging Face's format needs safetensors ({error}); pip install -c constraints.txt -e '.[hf]'"
        ) from None
    return safetensors
