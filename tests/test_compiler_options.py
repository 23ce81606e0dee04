"""The options that a step is compiled with: each known to its compiler, in the compiled step, and without them too."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilers import NEEDS_TPU, needs_compiler_of
from jax.sharding import Mesh

from gpt3_jax.cluster.device_errors import refused_option
from gpt3_jax.config import load_config
from gpt3_jax.parallel.compiler_options import Options, compiler_options
from gpt3_jax.parallel.mesh import AXES
from gpt3_jax.plan.topologies import open_topology
from gpt3_jax.train.step import make_step

TOPOLOGIES = [pytest.param(name, marks=needs_compiler_of(name)) for name in ("v5p:2x2x1", "v6e:2x2", "h100:1x8")]


@functools.cache
def mesh(topology: str) -> Mesh:
    devices = open_topology(topology).devices
    return Mesh(np.array(devices).reshape(1, -1, 1), AXES)


def compile_with(topology: str, options: Options) -> None:
    one = jax.sharding.SingleDeviceSharding(mesh(topology).devices.flat[0])
    jax.jit(jnp.negative).lower(jax.ShapeDtypeStruct((8,), jnp.float32, sharding=one)).compile(
        {name: value if isinstance(value, bool) else str(value) for name, value in options.items()}
    )


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_compiler_knows_each_option(topology: str) -> None:
    options = compiler_options(mesh(topology))
    assert options
    compile_with(topology, options)
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        compile_with(topology, {"xla_no_such_option": True})


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_step_is_lowered_with_them_unless_told_not_to(topology: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Options] = []
    jit = jax.jit

    def recording(*args: object, **settings: object) -> object:
        given.append(settings.get("compiler_options"))  # type: ignore[arg-type]
        return jit(*args, **settings)  # type: ignore[call-overload]

    monkeypatch.setattr(jax, "jit", recording)
    for overlap in ("true", "false"):
        settings = load_config(["gpt3-small"], ["--parallel.overlap", overlap])
        make_step(settings, mesh(topology))
    wanted = compiler_options(mesh(topology))
    assert [options for options in given if options is not None] == [wanted, {}]


def test_a_device_that_nothing_is_known_of_gets_none() -> None:
    devices = jax.devices()
    assert compiler_options(Mesh(np.array(devices).reshape(1, -1, 1), AXES)) == {}


@NEEDS_TPU
def test_a_single_device_gets_none() -> None:
    assert compiler_options(Mesh(np.array(mesh("v5p:2x2x1").devices.flat[0]).reshape(1, 1, 1), AXES)) == {}


def test_a_compiler_that_does_not_know_an_option_is_told_apart() -> None:
    lowered = jax.jit(jnp.negative).lower(jnp.zeros(8))
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        lowered.compile({"xla_no_such_option": True})
    assert "xla_no_such_option" in refused_option(error.value)
    assert "set parallel.overlap to false" in refused_option(error.value)
    assert not refused_option(ValueError("out of memory"))
