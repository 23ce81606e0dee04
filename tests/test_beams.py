"""Beam search against transformers' own, prompt by prompt, in fp32."""

from __future__ import annotations

import functools
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from gpt3_jax import interop
from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.generation import Beam, Completed, Generator
from gpt3_jax.interop.names import Layout

_WHY = "needs torch and transformers: pip install -c constraints.txt -e '.[hf]'"
torch = pytest.importorskip("torch", reason=_WHY)
transformers = pytest.importorskip("transformers", reason=_WHY)

pytestmark = pytest.mark.hf

CTX, BAND, NEW, WIDTH, ALPHA = 48, 5, 14, 4, 0.6


class Letters(Tokenizer):
    """11 letters and end-of-text: so few that many hypotheses end in it."""

    def __init__(self) -> None:
        letters = string.ascii_letters[:11]
        super().__init__("letters", {i: c.encode() for i, c in enumerate(letters)}, eot=11, pattern="")

    def encode_array(self, text: str) -> np.ndarray:
        return np.array([string.ascii_letters.index(c) for c in text], np.uint32)


LETTERS = Letters()
TOKENS: dict[str, int] = {"vocab_size": 12, "bos_token_id": 11, "eos_token_id": 11}
SHAPES: dict[Layout, Any] = {
    "gpt2": lambda: transformers.GPT2Config(n_positions=CTX, n_embd=48, n_layer=3, n_head=4, **TOKENS),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        max_position_embeddings=CTX,
        hidden_size=48,
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=BAND,
        **TOKENS,
    ),
}


SPREAD: dict[Layout, float] = {"gpt2": 0.2, "gpt_neo": 0.4}
"""Of embeddings: so that hypotheses of different prompts differ, and end after different numbers of tokens."""


@functools.cache
def theirs(kind: Layout) -> Any:
    torch.manual_seed(0)
    made = (transformers.GPT2LMHeadModel if kind == "gpt2" else transformers.GPTNeoForCausalLM)(SHAPES[kind]())
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            spread = SPREAD[kind] if "wte" in name or "wpe" in name else 0.1
            parameter += spread * torch.randn_like(parameter)
        end = made.transformer.wte.weight[LETTERS.eot]
        made.transformer.ln_f.bias += 2 * end / (end @ end)  # e^2 times as likely
    return made.eval()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Of torch: several only wait for one another, where other tests run beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, Generator]:
    made: dict[Layout, Generator] = {}
    for kind in SHAPES:
        folder: Path = tmp_path_factory.mktemp("hf") / kind
        theirs(kind).save_pretrained(folder)
        config, params = interop.from_hf(folder)
        made[kind] = Generator(params, config, LETTERS)
    return made


LENGTHS = (1, 4, 11, 18, CTX - NEW)
"""Of the prompts: shorter and longer than the band, and one that fills the context with its completion."""


def prompts(count: int = 10) -> list[list[list[int]]]:
    """So many prompts of each length."""
    random = np.random.default_rng(0)
    return [random.integers(0, 11, (count, length)).tolist() for length in LENGTHS]


def their_best(
    kind: Layout, prompts: list[list[int]], ends: list[int], width: int = WIDTH, early: bool | str = False
) -> list[tuple[list[int], float]]:
    """Their best hypothesis of each prompt, its last token included, and its log-likelihood over the length penalty.
    Prompts of one length, so that theirs need no padding."""
    ids = torch.tensor(prompts)
    found = theirs(kind).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        num_beams=width,
        **({"length_penalty": ALPHA, "early_stopping": early} if width > 1 else {}),
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    best = []
    scores = found.sequences_scores if width > 1 else [0.0] * len(prompts)
    for tokens, score in zip(found.sequences[:, ids.shape[1] :].tolist(), scores, strict=True):
        ended = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
        best.append((tokens[:ended], float(score)))
    return best


def check(answer: Completed, prompt: list[int], tokens: list[int], score: float, stop: tuple[str, ...]) -> None:
    text = LETTERS.decode([token for token in tokens if token != LETTERS.eot])
    stopped = text.endswith(stop) if stop else False
    assert answer.text == (text[:-1] if stopped else text), prompt
    last = tokens[-1]
    finish = "end_of_text" if last == LETTERS.eot else "stop" if stopped else "max_tokens"
    assert answer.finish == finish, prompt
    assert answer.logprob / len(tokens) ** ALPHA == pytest.approx(score, abs=1e-4), prompt
    assert (answer.tokens, answer.prompt_tokens) == (len(tokens) - (last == LETTERS.eot), len(prompt))


@pytest.mark.parametrize("stop", [(), ("c",)], ids=["end-of-text", "a stop string"])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(("stopping", "early"), [("heuristic", False), ("bound", "never")])
def test_beam_search_is_that_of_transformers(
    ours: dict[Layout, Generator],
    stopping: Literal["bound", "heuristic"],
    early: bool | str,
    kind: Layout,
    stop: tuple[str, ...],
) -> None:
    ends = [LETTERS.eot, *(token for text in stop for token in LETTERS.encode(text))]
    expected = [best for group in prompts() for best in their_best(kind, group, ends, early=early)]
    asked = [prompt for group in prompts() for prompt in group]
    assert len(asked) == 50
    found = dict(ours[kind].complete(asked, stop, NEW, Beam(WIDTH, ALPHA, "power", stopping)))
    for i, (prompt, (tokens, score)) in enumerate(zip(asked, expected, strict=True)):
        check(found[i], prompt, tokens, score, stop)
    assert len({len(tokens) for tokens, _ in expected}) > 3, "hypotheses end at different lengths"
    greedy = [best for group in prompts() for best in their_best(kind, group, ends, width=1)]
    assert sum(one[0] != other[0] for one, other in zip(greedy, expected, strict=True)) > 5, "the search matters"
