"""A model for evaluation and generation, from a run's folder and from a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny

from gpt3_jax import interop, model
from gpt3_jax.cli import convert, generate
from gpt3_jax.config import Config, ModelConfig, ParallelConfig
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.evals.engine import Engine
from gpt3_jax.generation import Generator
from gpt3_jax.interop import huggingface
from gpt3_jax.interop.loading import Loaded, _Cast, load_model, weights_fingerprint
from gpt3_jax.model.params import Params, param_table
from gpt3_jax.model.stored import contracted, dequantise, quantise, stores
from gpt3_jax.parallel.mesh import MeshShape, make_mesh
from gpt3_jax.train.checkpoint.integrity import named_leaves
from gpt3_jax.train.checkpoint.resume import Data, make_record
from gpt3_jax.train.checkpoint.store import CheckpointStore
from gpt3_jax.train.schedule import batch_schedule
from gpt3_jax.train.state import init_state, parameter_shardings

pytest.importorskip("safetensors", reason="needs the extra hf: pip install -c constraints.txt -e '.[hf]'")
pytestmark = pytest.mark.hf

TOKENS = 192


@dataclasses.dataclass(frozen=True)
class Saved:
    """One model as a run and in Hugging Face's format, which has another padding of the vocabulary."""

    run: Path
    hf: Path
    params: Params
    config: Config


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    base = tmp_path_factory.mktemp("loading")
    shape = {"n_layers": 2, "d_model": 16, "n_heads": 2, "vocab_multiple": 8}
    config = tiny(base, base / "run", model=shape)
    mesh = make_mesh(ParallelConfig(data=1), jax.devices()[:1])
    state = init_state(config, mesh)
    keys = iter(jax.random.split(jax.random.key(3), 32))
    blocks = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), state.params.blocks)
    state = dataclasses.replace(state, params=dataclasses.replace(state.params, blocks=blocks))
    record = make_record(config, batch_schedule(config, 1), Data("", ""))
    CheckpointStore(base / "run" / "checkpoints", keep_last=1, keep_every_tokens=0).save(
        TOKENS, 3, state, record, wait=True
    )
    interop.to_hf(state.params, config.model, base / "hf")
    return Saved(base / "run", base / "hf", state.params, config)


def unpadded(loaded: Loaded) -> Params[np.ndarray]:
    host: Params[np.ndarray] = jax.device_get(loaded.params)
    return dataclasses.replace(host, token_embedding=host.token_embedding[: loaded.config.n_vocab])


def test_a_run_and_its_hugging_face_folder_are_one_model(saved: Saved) -> None:
    run, hf = load_model(saved.run), load_model(saved.hf, tokenizer="bytes")
    assert (run.name, run.tokens_trained, run.tokenizer.name) == ("run", TOKENS, "bytes")
    assert (hf.name, hf.tokens_trained) == ("hf", None)
    assert run.params.token_embedding.shape != hf.params.token_embedding.shape
    assert run.fingerprint == hf.fingerprint
    jax.tree.map(np.testing.assert_array_equal, unpadded(run), unpadded(hf))
    assert len(run.fingerprint) == 64


def test_other_weights_have_another_fingerprint(saved: Saved, tmp_path: Path) -> None:
    bias = saved.params.ln_f_bias
    changed = dataclasses.replace(saved.params, ln_f_bias=bias.at[3].set(jnp.nextafter(bias[3], 9.0)))
    interop.to_hf(changed, saved.config.model, tmp_path / "hf")
    assert load_model(tmp_path / "hf", tokenizer="bytes").fingerprint != load_model(saved.run).fingerprint


@pytest.mark.parametrize("kind", ["run", "hf"])
@pytest.mark.parametrize(
    ("shape", "stage"), [(MeshShape(1, 8, 1), 3), (MeshShape(2, 2, 2), 1), (MeshShape(2, 2, 2), 0)]
)
def test_parameters_are_loaded_into_the_shards_of_a_mesh(
    saved: Saved, kind: str, shape: MeshShape, stage: Literal[0, 1, 2, 3]
) -> None:
    parallel = ParallelConfig(stage=stage, **dataclasses.asdict(shape))
    mesh = make_mesh(parallel)
    folder = saved.run if kind == "run" else saved.hf
    one, many = (
        load_model(folder, tokenizer="bytes"),
        load_model(folder, tokenizer="bytes", mesh=mesh, parallel=parallel),
    )
    assert all(len(leaf.sharding.device_set) == 1 for leaf in one.params.leaves())
    wanted = parameter_shardings(many.config, mesh, stage)
    assert [leaf.sharding for leaf in many.params.leaves()] == wanted.leaves()
    kernel = many.params.blocks.mlp_up_kernel
    parts = shape.tensor * (shape.data if stage else 1)
    assert all(shard.data.size * parts == kernel.size for shard in kernel.addressable_shards)
    jax.tree.map(np.testing.assert_array_equal, unpadded(one), unpadded(many))
    assert many.fingerprint == one.fingerprint


def test_a_dimension_that_the_mesh_does_not_divide_is_refused(saved: Saved, tmp_path: Path) -> None:
    parallel = ParallelConfig(data=8, stage=3)
    odd = dataclasses.replace(saved.config.model, d_model=12)
    interop.to_hf(model.init(odd, jax.random.key(0)), odd, tmp_path / "hf")
    with pytest.raises(UserError, match="dimension model of size 12 does not divide over mesh axes data 8"):
        load_model(tmp_path / "hf", tokenizer="bytes", mesh=make_mesh(parallel), parallel=parallel)


def with_tokenizer(saved: Saved, folder: Path) -> Path:
    """A copy of the Hugging Face folder with tokenizer files of its own: bytes and end-of-text."""
    shutil.copytree(saved.hf, folder)
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    characters = [chr(byte) for byte in printable] + [chr(256 + i) for i, _ in enumerate(hidden)]
    ids = {character: i for i, character in enumerate([*characters, "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def test_a_folder_with_tokenizer_files_is_read_with_them(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_tokenizer(saved, tmp_path / "hf")
    loaded = load_model(folder)
    assert loaded.tokenizer.encode("!ab") == [0, 64, 65]  # other ids than the byte tokenizer's
    assert generate.main([str(folder), "--prompt", "ab", "--max-tokens", "5", "--temperature", "0"]) == 0
    direct = capsys.readouterr().out
    assert convert.main(["from-hf", str(folder), str(tmp_path / "run")]) == 0
    converted = load_model(tmp_path / "run")
    assert converted.tokenizer.fingerprint == loaded.tokenizer.fingerprint
    assert (converted.fingerprint, converted.tokens_trained) == (loaded.fingerprint, None)
    capsys.readouterr()
    assert generate.main([str(tmp_path / "run"), "--prompt", "ab", "--max-tokens", "5", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == direct


def test_without_tokenizer_files_it_is_gpt2s_if_the_vocabulary_fits(
    saved: Saved, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"holds no tokenizer .* of 257 is too small for r50k_base, which has 50257"):
        load_model(saved.hf)
    config = dataclasses.replace(saved.config.model, n_vocab=50257, n_layers=1)
    interop.to_hf(model.init(config, jax.random.key(0)), config, tmp_path / "hf")
    # No download in a test: what r50k_base would be is told from the error about it.
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="'r50k_base' could not be fetched"):
        load_model(tmp_path / "hf")
    assert any("holds no tokenizer" in line and "using r50k_base" in line for line in said)


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(saved: Saved, tmp_path: Path) -> None:
    small = dataclasses.replace(saved.config.model, n_vocab=200)
    interop.to_hf(model.init(small, jax.random.key(0)), small, tmp_path / "hf")
    with pytest.raises(UserError, match=r"'bytes' has 257 tokens but the model in .* only 200"):
        load_model(tmp_path / "hf", tokenizer="bytes")


def test_folders_that_hold_no_model_are_refused_in_one_line(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_model(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds no checkpoint of a run .* no model in Hugging Face's format"):
        load_model(tmp_path)
    folder = shutil.copytree(saved.hf, tmp_path / "hf")
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(UserError, match="model_type is 'llama'; expected gpt2 or gpt_neo"):
        load_model(folder)


@pytest.fixture(scope="module")
def in_bf16(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The same model with bf16 as its compute dtype, in both formats."""
    base = tmp_path_factory.mktemp("bf16")
    config = dataclasses.replace(saved.config, model=dataclasses.replace(saved.config.model, dtype="bfloat16"))
    state = dataclasses.replace(
        init_state(config, make_mesh(ParallelConfig(data=1), jax.devices()[:1])), params=saved.params
    )
    store = CheckpointStore(base / "run" / "checkpoints", keep_last=2, keep_every_tokens=0)
    for tokens, step in ((TOKENS // 2, 2), (TOKENS, 3)):
        record = make_record(config, batch_schedule(config, 1), Data("", ""))
        store.save(tokens, step, state, record, wait=True)
    interop.to_hf(saved.params, config.model, base / "hf")
    settings = json.loads((base / "hf" / "config.json").read_text())
    (base / "hf" / "config.json").write_text(json.dumps(settings | {"dtype": "bfloat16"}))
    return Saved(base / "run", base / "hf", saved.params, config)


@pytest.mark.parametrize("kind", ["run", "hf"])
@pytest.mark.parametrize("shape", [None, MeshShape(2, 2, 2)])
def test_parameters_are_cast_one_by_one_while_they_are_loaded(
    in_bf16: Saved, kind: str, shape: MeshShape | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    parallel = ParallelConfig(stage=3, **dataclasses.asdict(shape)) if shape else ParallelConfig()
    mesh = make_mesh(parallel) if shape else None
    folder = in_bf16.run if kind == "run" else in_bf16.hf
    whole = load_model(folder, tokenizer="bytes", mesh=mesh, parallel=parallel)
    there = {id(array) for array in jax.live_arrays()}
    in_fp32: list[int] = []
    given, place = _Cast.__call__, huggingface._placed

    def count(array: jax.Array) -> None:
        new = [one for one in jax.live_arrays() if id(one) not in there and one.dtype == jnp.float32]
        in_fp32.append(sum(one.size > array.size // 2 for one in new if one.shape != ()))

    def counted(self: _Cast, name: str, array: jax.Array) -> jax.Array:
        count(array)
        return given(self, name, array)

    def placed(*args: Any) -> jax.Array:
        array = place(*args)
        count(array)  # as soon as it is there, when what was placed before must be gone
        return array

    monkeypatch.setattr(_Cast, "__call__", counted)
    monkeypatch.setattr(huggingface, "_placed", placed)
    cast = load_model(folder, tokenizer="bytes", mesh=mesh, parallel=parallel, weights="compute")
    assert cast.fingerprint == whole.fingerprint and cast.rounding is None
    assert in_fp32 == [1] * len(cast.params.leaves()) * (2 if kind == "hf" else 1), "each is there alone"
    for one, other in zip(cast.params.leaves(), whole.params.leaves(), strict=True):
        assert one.dtype == jnp.bfloat16 and one.sharding == other.sharding
        np.testing.assert_array_equal(one, other.astype(jnp.bfloat16))


def test_cast_weights_keep_the_fingerprint_without_padding() -> None:
    config = ModelConfig(n_layers=2, d_model=8, n_heads=1, n_ctx=8, n_vocab=5, vocab_multiple=8, dtype="bfloat16")
    params = model.init(config, jax.random.key(0))
    cast = _Cast(config, "compute")
    for name, leaf in named_leaves(params).items():
        assert cast(name, leaf).dtype == jnp.bfloat16
    assert cast.fingerprint() == weights_fingerprint(params, config)


def test_a_damaged_checkpoint_is_passed_over_while_casting(in_bf16: Saved, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(in_bf16.run, run)
    files = [path for path in (run / "checkpoints" / f"tokens-{TOKENS}").rglob("*") if path.is_file()]
    sizes = sorted(in_bf16.params.blocks.leaves(), key=lambda leaf: leaf.size)  # the largest are read first
    saved, file = next(
        (bytes_, path)
        for bytes_ in (np.asarray(leaf).tobytes() for leaf in sizes)
        for path in files
        if bytes_ in path.read_bytes()
    )
    assert len(saved) < np.asarray(sizes[-1]).nbytes
    content = file.read_bytes()
    place = content.index(saved) + 2
    file.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
    loaded = load_model(run, weights="compute")
    assert loaded.tokens_trained == TOKENS // 2
    assert loaded.fingerprint == load_model(in_bf16.run).fingerprint


@pytest.mark.parametrize("shape", [None, MeshShape(2, 2, 2)])
def test_weights_that_int8_stands_for_are_loaded_in_the_compute_dtype(in_bf16: Saved, shape: MeshShape | None) -> None:
    parallel = ParallelConfig(stage=3, **dataclasses.asdict(shape)) if shape else ParallelConfig()
    mesh = make_mesh(parallel) if shape else None
    whole, found = (
        load_model(in_bf16.run, mesh=mesh, parallel=parallel, weights=weights)  # type: ignore[arg-type]
        for weights in ("float32", "of_int8")
    )
    assert found.fingerprint == whole.fingerprint and found.rounding is not None
    table = param_table(found.config)
    for one, other, spec in zip(found.params.leaves(), whole.params.leaves(), table.leaves(), strict=True):
        assert one.dtype == jnp.bfloat16 and one.sharding == other.sharding
        if stores(spec):
            axis = contracted(spec) + (spec.stacked and contracted(spec) >= 0)
            other = dequantise(quantise(other, axis), axis)
        np.testing.assert_array_equal(one, other.astype(jnp.bfloat16))


def test_a_model_in_fp32_is_loaded_as_it_is(saved: Saved) -> None:
    one, other = load_model(saved.run), load_model(saved.run, weights="compute")
    assert one.fingerprint == other.fingerprint
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_weights_in_int8_are_finite_and_for_generation_alone(saved: Saved, tmp_path: Path) -> None:
    blocks = saved.params.blocks
    broken = dataclasses.replace(blocks, mlp_up_kernel=blocks.mlp_up_kernel.at[1, 2, 3].set(jnp.nan))
    interop.to_hf(dataclasses.replace(saved.params, blocks=broken), saved.config.model, tmp_path / "hf")
    loaded = load_model(saved.hf, tokenizer="bytes", weights="int8")
    with pytest.raises(UserError, match="the weights are in int8, which only generation reads; expected float32 or"):
        Engine.of(loaded)
    with pytest.raises(UserError, match="form is 'compute' but the weights are quantised; expected 'int8'"):
        Generator(loaded.params, loaded.config, loaded.tokenizer)
    with pytest.raises(RunError, match=r"^blocks/mlp_up_kernel of the model in .*hf' has weights that are infinite or"):
        load_model(tmp_path / "hf", tokenizer="bytes", weights="int8")


@pytest.mark.parametrize("parallel", [None, ParallelConfig(data=4, tensor=2, stage=3)])
def test_a_loaded_generator_holds_its_weights_once(in_bf16: Saved, parallel: ParallelConfig | None) -> None:
    config, mesh = in_bf16.config.model, None if parallel is None else make_mesh(parallel)
    there = {id(array) for array in jax.live_arrays()}
    generator = Generator.load(in_bf16.run, parallel)
    held = sum(
        shard.data.nbytes for new in jax.live_arrays() if id(new) not in there for shard in new.addressable_shards
    )
    other = Generator(in_bf16.params, config, generator.tokenizer, mesh)
    once = sum(shard.data.nbytes for leaf in jax.tree.leaves(other._weights) for shard in leaf.addressable_shards)
    assert once <= held < 1.1 * once
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(in_bf16.params))
    texts = ["".join(p.text for p in one.stream(["ab", "c"], max_tokens=12, seed=1)) for one in (generator, other)]
    assert texts[0] == texts[1]


def test_the_command_generates_the_same_over_a_mesh(saved: Saved, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(saved.run), "--prompt", "ab", "--max-tokens", "8", "--temperature", "0"]
    texts = []
    for options in ([], ["--parallel.data", "4", "--parallel.tensor=2"]):
        assert generate.main([*command, *options]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != ""
