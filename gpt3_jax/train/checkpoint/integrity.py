"""Names, shapes and checksums of the arrays in a checkpoint, which Orbax does not verify.

Orbax writes array data without a checksum, so a flipped bit loads as a wrong number. The checksum here is computed on
the device from the bits and does not depend on the sharding: one computed before saving on 512 chips can be verified
after loading on one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gpt3_jax.errors import UserError

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # 8 bytes: bitcast to two words
_STEPS = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0x2545F491, 0x9E6C63D1)  # odd, one per dim


def named_leaves(tree: Any, under: str = "") -> dict[str, Any]:
    """Leaves by path, such as ``params/token_embedding``, in the order of `jax.tree.leaves`."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = [
        "/".join(part for part in (under, jax.tree_util.keystr(path, simple=True, separator="/")) if part)
        for path, _ in pairs
    ]
    if len(set(names)) != len(names):
        raise ValueError(f"two leaves share a name: {sorted(n for n in names if names.count(n) > 1)[0]}")
    return dict(zip(names, (leaf for _, leaf in pairs), strict=True))


def describe(leaf: Any) -> dict[str, Any]:
    """Shape and dtype of an array, or of a `jax.ShapeDtypeStruct`, as JSON."""
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def require_same_leaves(saved: Mapping[str, Any], wanted: Mapping[str, Any], under: str, path: str) -> None:
    """Raises UserError for the first leaf that differs between checkpoint `path` and the tree to be restored.

    Called before anything is loaded: Orbax would cast a different dtype silently, and report a wrong shape
    misleadingly. `saved` is `describe` by name; `wanted` arrays or `jax.ShapeDtypeStruct` by name. Compares only names
    below `under`.
    """
    advice = "resume with the configuration that it was saved with, or set train.run_dir to another folder"
    inside = [name for name in saved if not under or name == under or name.startswith(f"{under}/")]
    for name, leaf in wanted.items():
        if name not in saved:
            raise UserError(f"checkpoint {path} has no {name}, which this configuration has; {advice}")
        there = f"{tuple(saved[name]['shape'])} {saved[name]['dtype']}"
        here = f"{tuple(leaf.shape)} {leaf.dtype}"
        if there != here:
            raise UserError(f"{name} is {there} in checkpoint {path} but {here} in this configuration; {advice}")
    for name in inside:
        if name not in wanted:
            raise UserError(f"checkpoint {path} has {name}, which this configuration does not have; {advice}")


def array_checksums(leaves: Mapping[str, jax.Array]) -> dict[str, str]:
    """Checksum of each array as 8 hexadecimal digits; equal for every sharding and number of processes.

    With h a fixed bijection of 32-bit words, the checksum is sum_i h(word_i xor h(position_i)) mod 2^32. Damage to a
    single word always changes it. Other damage (swapped shards, a missing piece) is missed with probability 2^-32.
    Every process that holds a part of the arrays must call it. Arrays have at most 6 dims.
    """
    groups: dict[frozenset[jax.Device], dict[str, jax.Array]] = {}
    for name, leaf in leaves.items():  # one program runs on one set of devices
        groups.setdefault(frozenset(leaf.sharding.device_set), {})[name] = leaf
    sums: dict[str, str] = {}
    for group in groups.values():
        values = jax.device_get(_checksums(group))
        sums.update({name: f"{int(value):08x}" for name, value in values.items()})
    return {name: sums[name] for name in leaves}


def record_digest(record: Any) -> str:
    """SHA-256 of a JSON value; equal before and after a round trip through JSON text."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@jax.jit
def _checksums(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _checksum(leaf) for name, leaf in leaves.items()}


def _checksum(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(array, _UNSIGNED[array.dtype.itemsize]).astype(jnp.uint32)
    # Not the C-order index: modulo 2^32 it repeats at whole layers of the largest tensors, so swapped layers would
    # pass.
    index = jnp.zeros((), jnp.uint32)
    for dim in range(words.ndim):
        step = jnp.uint32(_STEPS[dim])
        index = index + jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim) * step
    return jnp.sum(_mix(words ^ _mix(index)), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words in which every input bit affects every output bit (MurmurHash3's finalizer)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
