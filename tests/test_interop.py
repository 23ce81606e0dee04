"""Hugging Face in and out, against transformers itself: logits, gradients, and everything that is refused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt3_jax import interop, model
from gpt3_jax.cli import convert
from gpt3_jax.config import ModelConfig, load_config
from gpt3_jax.errors import UserError
from gpt3_jax.generation import generate
from gpt3_jax.interop.names import Layout, layout, to_tensors
from gpt3_jax.model.params import Params
from gpt3_jax.model.transformer import loss_sum, plain_weights
from gpt3_jax.parallel.collectives import Local
from gpt3_jax.train.checkpoint.trained import load_trained

_WHY = "needs torch and transformers: pip install -c constraints.txt -e '.[hf]'"
torch = pytest.importorskip("torch", reason=_WHY)
transformers = pytest.importorskip("transformers", reason=_WHY)
safetensors = pytest.importorskip("safetensors.numpy", reason=_WHY)

pytestmark = pytest.mark.hf

VOCAB, CTX, BAND = 257, 24, 5
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, CTX + 1))
forward = jax.jit(model.forward, static_argnums=2)


def gpt2(**fields: Any) -> Any:
    shape = {"vocab_size": VOCAB, "n_positions": CTX, "n_embd": 48, "n_layer": 3, "n_head": 4}
    return transformers.GPT2Config(**{**shape, "bos_token_id": 256, "eos_token_id": 256, **fields})


def gpt_neo(**fields: Any) -> Any:
    shape = {
        "vocab_size": VOCAB, "max_position_embeddings": CTX, "hidden_size": 48, "num_layers": 4, "num_heads": 4,
        "attention_types": [[["global", "local"], 2]], "window_size": BAND,
    }  # fmt: skip
    return transformers.GPTNeoConfig(**{**shape, "bos_token_id": 256, "eos_token_id": 256, **fields})


def random_model(kind: Layout, **fields: Any) -> Any:
    """A model of Hugging Face's with random values everywhere: a bias or a LayerNorm that is forgotten must show."""
    torch.manual_seed(0)
    made = (
        transformers.GPT2LMHeadModel(gpt2(**fields))
        if kind == "gpt2"
        else transformers.GPTNeoForCausalLM(gpt_neo(**fields))
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("hf")
    for kind in ("gpt2", "gpt_neo"):
        random_model(kind).save_pretrained(base / kind)
    return {kind: base / kind for kind in ("gpt2", "gpt_neo")}


def logits(hf: Any) -> np.ndarray:
    with torch.no_grad():
        return hf(torch.from_numpy(TOKENS[:, :-1])).logits.numpy()


def mean_loss(params: Params, config: ModelConfig) -> jax.Array:
    rows = jnp.asarray(TOKENS)
    return loss_sum(plain_weights(params, "float32"), rows, config, Local("cpu"), "none", 16) / (2 * CTX)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo"])
def test_a_hugging_face_model_has_the_same_logits_here(folders: dict[str, Path], kind: Layout) -> None:
    config, params = interop.from_hf(folders[kind])
    expected = logits(random_model(kind))
    assert (config.dtype, config.n_vocab, params.token_embedding.shape[0]) == ("float32", VOCAB, 384)
    assert config.attention_pattern == (("dense",) if kind == "gpt2" else ("dense", "banded"))
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(forward(params, TOKENS[:, :-1], config), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo"])
def test_gradients_of_the_loss_are_the_same(folders: dict[str, Path], kind: Layout) -> None:
    config, params = interop.from_hf(folders[kind])
    theirs = random_model(kind)
    output = theirs(torch.from_numpy(TOKENS[:, :-1])).logits.reshape(-1, VOCAB)
    loss = torch.nn.functional.cross_entropy(output, torch.from_numpy(TOKENS[:, 1:].reshape(-1)))
    loss.backward()
    found, gradients = jax.jit(jax.value_and_grad(mean_loss), static_argnums=1)(params, config)
    np.testing.assert_allclose(found, loss.item(), rtol=1e-5)
    ours = to_tensors(gradients, config, kind)
    expected = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        # Their query weights are ours / sqrt(d_head): so is a value written there, and the reverse for its gradient.
        factor = config.d_head if name.endswith("q_proj.weight") else 1
        scale = np.abs(gradient).max()
        assert scale > 0
        np.testing.assert_allclose(ours[name] * factor / scale, gradient / scale, atol=1e-4, err_msg=name)


OURS = ModelConfig(
    n_layers=4,
    d_model=48,
    n_heads=4,
    n_ctx=CTX,
    n_vocab=VOCAB,
    band_width=BAND,
    init_std=0.15,
    norm_eps=1e-6,
    dtype="float32",
)


@pytest.mark.parametrize("pattern", [("dense",), ("dense", "banded"), ("banded", "dense", "banded", "banded")])
def test_a_model_of_ours_is_loaded_by_transformers(tmp_path: Path, pattern: tuple[Any, ...]) -> None:
    config = dataclasses.replace(OURS, attention_pattern=pattern)
    params = model.init(config, jax.random.key(1))
    interop.to_hf(params, config, tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "hf", "model.safetensors"]
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert type(loaded).__name__ == ("GPT2LMHeadModel" if pattern == ("dense",) else "GPTNeoForCausalLM")
    assert not any(report.values()), report
    assert loaded.config.vocab_size == VOCAB
    np.testing.assert_allclose(logits(loaded.eval()), forward(params, TOKENS[:, :-1], config), atol=1e-4)

    config_back, back = interop.from_hf(tmp_path / "hf")
    assert dataclasses.replace(config_back, band_width=BAND) == config
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), back, params)


def with_biases(params: Params) -> Params:
    """As training leaves them: every parameter of a block away from its initial value, biases included."""
    keys = iter(jax.random.split(jax.random.key(2), 64))
    return replace(
        params, blocks=jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), params.blocks)
    )


def test_gpt_neo_holds_biases_of_queries_elsewhere(tmp_path: Path) -> None:
    params = with_biases(model.init(OURS, jax.random.key(1)))
    interop.to_hf(params, OURS, tmp_path / "hf")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    expected = forward(params, TOKENS[:, :-1], OURS)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits(loaded), expected, atol=1e-4)
    blocks = replace(params.blocks, qkv_bias=jnp.zeros_like(params.blocks.qkv_bias))
    without = replace(params, blocks=blocks)
    assert np.abs(forward(without, TOKENS[:, :-1], OURS) - expected).max() > 1e-2, "these biases matter"


def test_a_query_matrix_without_an_inverse_is_refused(tmp_path: Path) -> None:
    params = with_biases(model.init(OURS, jax.random.key(1)))
    for harm, message in [
        (lambda kernel: kernel.at[2, :, 0, 3].set(0), "the query matrix of block 2 is singular"),
        (lambda kernel: kernel.at[2, :, 0, 3].multiply(1e-9), "logits would change by"),
    ]:
        blocks = replace(params.blocks, qkv_kernel=harm(params.blocks.qkv_kernel))
        with pytest.raises(UserError, match=message):
            interop.to_hf(replace(params, blocks=blocks), OURS, tmp_path / "hf")
        assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine").write_text("")
    with pytest.raises(UserError, match="not an empty folder"):
        interop.to_hf(model.init(OURS, jax.random.key(1)), OURS, tmp_path / "hf")
    assert [path.name for path in (tmp_path / "hf").iterdir()] == ["mine"]


def rewritten(folder: Path, to: Path, settings: dict[str, Any] | None = None, **changed: Any) -> Path:
    """A copy of a model with other settings and tensors; None takes one away."""
    to.mkdir()
    values = json.loads((folder / "config.json").read_text()) | (settings or {})
    (to / "config.json").write_text(json.dumps(values))
    arrays = safetensors.load_file(folder / "model.safetensors")
    for name, array in changed.items():
        arrays.pop(name, None)
        if array is not None:
            arrays[name] = array
    safetensors.save_file(arrays, to / "model.safetensors")
    return to


WTE = "transformer.wte.weight"


@pytest.mark.parametrize("form", ["bare names", "masks and tied head", "shards", "pytorch_model.bin"])
def test_older_forms_of_the_same_weights_are_read(folders: dict[str, Path], tmp_path: Path, form: str) -> None:
    arrays = safetensors.load_file(folders["gpt2"] / "model.safetensors")
    (tmp_path / "config.json").write_text((folders["gpt2"] / "config.json").read_text())
    if form == "bare names":
        bare = {name.removeprefix("transformer."): array for name, array in arrays.items()}
        safetensors.save_file(bare, tmp_path / "model.safetensors")
    elif form == "masks and tied head":
        mask = {f"transformer.h.{i}.attn.bias": np.ones((1, 1, CTX, CTX), bool) for i in range(3)}
        safetensors.save_file({**arrays, **mask, "lm_head.weight": arrays[WTE]}, tmp_path / "model.safetensors")
    elif form == "shards":
        files = {name: f"model-0000{i % 2}.safetensors" for i, name in enumerate(arrays)}
        for file in set(files.values()):
            safetensors.save_file({n: a for n, a in arrays.items() if files[n] == file}, tmp_path / file)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    else:
        torch.save({name: torch.from_numpy(a) for name, a in arrays.items()}, tmp_path / "pytorch_model.bin")
    (config, params), (expected_config, expected) = interop.from_hf(tmp_path), interop.from_hf(folders["gpt2"])
    assert config == expected_config
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def _edit(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def _one_name(hf: Any, folder: Path) -> None:
    from safetensors.torch import save_model

    save_model(hf, str(folder / "model.safetensors"))
    assert WTE not in safetensors.load_file(folder / "model.safetensors")


def _torch_shards(hf: Any, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    state = {name: tensor for name, tensor in hf.state_dict().items() if name != "lm_head.weight"}
    files = {name: f"pytorch_model-0000{i % 3}.bin" for i, name in enumerate(state)}
    for file in set(files.values()):
        torch.save({name: state[name].clone() for name in state if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def _untied_but_equal(hf: Any, folder: Path) -> None:
    arrays = safetensors.load_file(folder / "model.safetensors")
    safetensors.save_file({**arrays, "lm_head.weight": arrays[WTE].copy()}, folder / "model.safetensors")
    _edit(folder, tie_word_embeddings=False)


def _other_names(hf: Any, folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    names = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
             "n_positions": "max_position_embeddings", "num_layers": "num_hidden_layers",
             "num_heads": "num_attention_heads"}  # fmt: skip
    values = {names.get(name, name) if name != "n_ctx" else name: value for name, value in values.items()}
    (folder / "config.json").write_text(json.dumps({**values, "n_ctx": 7, "unknown": {"a": 1}}))


def _no_metadata(hf: Any, folder: Path) -> None:
    safetensors.save_file(safetensors.load_file(folder / "model.safetensors"), folder / "model.safetensors")


VARIANTS: dict[str, tuple[Layout, dict[str, Any], Any]] = {
    "saved by safetensors.torch.save_model": ("gpt2", {}, _one_name),
    "the same of GPT-Neo": ("gpt_neo", {}, _one_name),
    "pytorch_model.bin in shards": ("gpt2", {}, _torch_shards),
    "shards": ("gpt2", {}, lambda hf, folder: hf.save_pretrained(folder, max_shard_size="40KB")),
    "untied, but equal": ("gpt2", {}, _untied_but_equal),
    "the bare model": ("gpt2", {}, lambda hf, folder: hf.transformer.save_pretrained(folder)),
    "the bare GPT-Neo": ("gpt_neo", {}, lambda hf, folder: hf.transformer.save_pretrained(folder)),
    "names of other models' settings": ("gpt2", {}, _other_names),
    "the same for GPT-Neo": ("gpt_neo", {}, _other_names),
    "no metadata": ("gpt2", {}, _no_metadata),
    "fp64": ("gpt2", {}, lambda hf, folder: hf.double().save_pretrained(folder)),
    "fp16": ("gpt2", {}, lambda hf, folder: hf.half().save_pretrained(folder)),
    "a resized vocabulary": ("gpt2", {"vocab_size": 300}, lambda hf, folder: None),
    "reordered attention": ("gpt2", {"reorder_and_upcast_attn": True}, lambda hf, folder: None),
    **{
        name: ("gpt2", {"activation_function": name}, lambda hf, folder: None)
        for name in ("gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate")
    },
    "kinds of attention in runs": (
        "gpt_neo",
        {"attention_types": [[["global"], 1], [["local", "local"], 1], [["global"], 1]]},
        lambda hf, folder: None,
    ),
    "all global": ("gpt_neo", {"attention_types": [[["global"], 4]]}, lambda hf, folder: None),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_transformers_loads_has_the_same_logits_here(tmp_path: Path, variant: str) -> None:
    kind, fields, save = VARIANTS[variant]
    hf = random_model(kind, **fields)
    hf.save_pretrained(tmp_path)
    save(hf, tmp_path)
    if variant == "shards":
        (tmp_path / "model.safetensors").unlink()
    expected = logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval())
    config, params = interop.from_hf(tmp_path)
    config = dataclasses.replace(config, dtype="float32")
    np.testing.assert_allclose(forward(params, TOKENS[:, :-1], config), expected, atol=1e-4)


def test_a_configuration_with_a_byte_order_mark_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    other = rewritten(folders["gpt2"], tmp_path / "hf")
    text = (other / "config.json").read_text()
    (other / "config.json").write_text(text, encoding="utf-8-sig")
    assert interop.from_hf(other)[0] == interop.from_hf(folders["gpt2"])[0]


def test_weights_of_16_bits_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    random_model("gpt2").to(torch.bfloat16).save_pretrained(tmp_path)
    config, params = interop.from_hf(tmp_path)
    assert config.dtype == "bfloat16"
    _, expected = interop.from_hf(folders["gpt2"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), params, expected)


@pytest.mark.parametrize(
    ("kind", "settings", "changed", "message"),
    [
        ("gpt2", {"model_type": "llama"}, {}, "model_type is 'llama'; expected gpt2 or gpt_neo"),
        ("gpt2", {"activation_function": "relu"}, {}, "activation_function is 'relu'; this model has only 'gelu_new'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, {}, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", {"n_inner": 100}, {}, "n_inner is 100"),
        ("gpt2", {"model_type": ["gpt2"]}, {}, r"model_type is \['gpt2'\]; expected"),
        ("gpt2", {"n_layer": None}, {}, "n_layer is None; expected a whole number of at least 1"),
        ("gpt2", {"n_embd": "48"}, {}, "n_embd is '48'; expected a whole number"),
        ("gpt2", {"layer_norm_epsilon": "1e-5"}, {}, "layer_norm_epsilon is '1e-5'; expected a number"),
        ("gpt_neo", {"num_layers": 0, "attention_types": []}, {}, "num_layers is 0; expected a whole number"),
        (
            "gpt2",
            {"n_positions": 32},
            {},
            r"wpe.weight in .* has shape \[24, 48\], its config.json calls for \[32, 48\]",
        ),
        ("gpt2", {"n_layer": 4}, {}, r"has no tensor transformer\.h\.3\."),
        ("gpt2", {"n_layer": 2}, {}, r"has a tensor transformer\.h\.2\..* that this model has no place for"),
        ("gpt2", {"n_head": 5}, {}, "n_heads 5"),
        ("gpt2", {}, {WTE: None}, r"has no tensor transformer\.wte\.weight"),
        ("gpt2", {}, {"lm_head.weight": np.zeros((VOCAB, 48), np.float32)}, "differs from wte.weight"),
        ("gpt2", {"tie_word_embeddings": False}, {}, "tie_word_embeddings is False and there is no tensor lm_head"),
        ("gpt2", {"activation_function": "gelu"}, {}, "activation_function is 'gelu'; this model has only 'gelu_new'"),
        ("gpt2", {"add_cross_attention": True}, {}, "add_cross_attention is True; this model has only False"),
        ("gpt2", {"scale_attn_weights": False}, {}, "scale_attn_weights is False; this model has only True"),
        ("gpt_neo", {"attention_types": [[["global"], 3]]}, {}, "names 3 layers, num_layers is 4"),
        ("gpt_neo", {"attention_types": [[["global", "sparse"], 2]]}, {}, "attention_types is"),
        ("gpt_neo", {"intermediate_size": 100}, {}, "intermediate_size is 100"),
    ],
)
def test_models_that_are_none_of_ours_are_refused_in_one_line(
    folders: dict[str, Path], tmp_path: Path, kind: str, settings: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        interop.from_hf(rewritten(folders[kind], tmp_path / "hf", settings, **changed))
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_broken_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json cannot be read \(No such file"):
        interop.from_hf(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        interop.from_hf(tmp_path)
    (tmp_path / "config.json").write_text((folders["gpt2"] / "config.json").read_text())
    with pytest.raises(UserError, match=r"holds no weights; expected model\.safetensors"):
        interop.from_hf(tmp_path)
    whole = (folders["gpt2"] / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        interop.from_hf(tmp_path)


def test_convert_makes_a_run_that_generates_and_goes_back(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert convert.main(["from-hf", str(folders["gpt_neo"]), str(run_dir), "--tokenizer", "bytes"]) == 0
    assert f"gpt3-jax generate {run_dir}" in capsys.readouterr().out
    trained = load_trained(run_dir)
    config, params = trained.config, trained.params
    expected_config, expected = interop.from_hf(folders["gpt_neo"])
    assert config.model == expected_config
    assert load_config([run_dir / "config.yaml"]) == config
    jax.tree.map(np.testing.assert_array_equal, params, expected)

    prompt = torch.tensor([list(b"abc")])
    theirs = random_model("gpt_neo").generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False, pad_token_id=0
    )
    text = bytes(t for t in theirs[0, 3:].tolist() if t < 256).decode(errors="replace")
    assert generate(run_dir, "abc", max_tokens=8, temperature=0) == [text]

    assert convert.main(["to-hf", str(run_dir), str(tmp_path / "back")]) == 0
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    np.testing.assert_allclose(logits(back), logits(random_model("gpt_neo")), atol=1e-5)


def test_convert_refuses_a_tokenizer_that_does_not_fit_and_a_folder_that_holds_a_run(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    small = rewritten(folders["gpt2"], tmp_path / "hf", {"vocab_size": 200}, **{WTE: np.zeros((200, 48), np.float32)})
    with pytest.raises(UserError, match=r"'bytes' has 257 tokens but the model in .* only 200"):
        convert.main(["from-hf", str(small), str(tmp_path / "run"), "--tokenizer", "bytes"])
    assert not (tmp_path / "run").exists()
    arguments = ["from-hf", str(folders["gpt2"]), str(tmp_path / "run"), "--tokenizer", "bytes"]
    assert convert.main(arguments) == 0
    with pytest.raises(UserError, match="holds a run already"):
        convert.main(arguments)


def test_the_layout_follows_from_the_pattern() -> None:
    assert layout(dataclasses.replace(OURS, attention_pattern=("dense", "dense"))) == "gpt2"
    assert layout(OURS) == layout(dataclasses.replace(OURS, attention_pattern=("banded",))) == "gpt_neo"
