"""Log-likelihoods of strings are those of transformers, for a dense and an alternating model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt3_jax.data.tokenizer import load_tokenizer
from gpt3_jax.evals.engine import Engine
from gpt3_jax.evals.requests import Continuation
from gpt3_jax.interop import from_hf

_WHY = "needs torch and transformers: pip install -c constraints.txt -e '.[hf]'"
torch = pytest.importorskip("torch", reason=_WHY)
transformers = pytest.importorskip("transformers", reason=_WHY)

pytestmark = pytest.mark.hf

CTX, EOT = 2304, 256
LETTERS = "etaoin shrdlu\n.,ÄéßđΩж漢字🙂"


def random_model(kind: str) -> Any:
    torch.manual_seed(0)
    shared: dict[str, Any] = {"vocab_size": EOT + 1, "bos_token_id": EOT, "eos_token_id": EOT}
    if kind == "gpt2":
        made = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_positions=CTX, n_embd=48, n_layer=2, n_head=4, **shared)
        )
    else:
        made = transformers.GPTNeoForCausalLM(
            transformers.GPTNeoConfig(
                max_position_embeddings=CTX,
                hidden_size=48,
                num_layers=4,
                num_heads=4,
                attention_types=[[["global", "local"], 2]],
                window_size=64,
                **shared,
            )
        )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return made.eval()


def mixed(count: int) -> list[Continuation]:
    """Contexts of 0 to 2,047 tokens, continuations of 1 to 200; every fourth context is that of the one before."""
    rng = np.random.default_rng(0)

    def text(tokens: int) -> str:
        made = ""
        while (left := tokens - len(made.encode())) > 0:
            letter = LETTERS[rng.integers(len(LETTERS))]
            made += letter if len(letter.encode()) <= left else "x"
        return made

    lengths = [0, 1, 2047, *np.exp(rng.uniform(0, np.log(2047), count - 3)).astype(int).tolist()]
    contexts = [text(length) for length in lengths]
    for i in range(3, count, 4):
        contexts[i] = contexts[i - 1]
    sizes = [200, 1, 200, *np.exp(rng.uniform(0, np.log(200), count - 3)).astype(int).tolist()]
    return [Continuation(context, text(size)) for context, size in zip(contexts, sizes, strict=True)]


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo"])
def test_300_likelihoods_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs = random_model(kind)
    theirs.save_pretrained(tmp_path)
    config, params = from_hf(tmp_path)
    requests = mixed(300)
    engine = Engine(params, config, load_tokenizer("bytes"))
    answers: dict[int, Any] = dict(engine.answer(requests))
    for i, request in enumerate(requests):
        context = list(request.context.encode()) or [EOT]
        continuation = list(request.continuation.encode())
        with torch.no_grad():
            logits = theirs(torch.tensor([(context + continuation)[:-1]])).logits[0, len(context) - 1 :]
        rows = torch.log_softmax(logits.double(), -1).numpy()
        wanted = rows[np.arange(len(continuation)), continuation]
        np.testing.assert_allclose(answers[i].token_logprobs, wanted, atol=1e-4, err_msg=f"request {i}")
        assert answers[i].token_greedy == tuple((rows.argmax(-1) == continuation).tolist())
        assert answers[i].tokens == len(continuation)
