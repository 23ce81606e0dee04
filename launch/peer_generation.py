"""Greedy generation beside transformers', in turns on one machine: the same weights, prompts and number of tokens.

    python launch/peer_generation.py --config gpt3-small

The weights are random, all layers dense, and both read them from one folder in Hugging Face's format. For each dtype
and number of rows there are two processes, of which one waits while the other runs. Each round has both complete the
prompts with one token and with all of them; the difference is the time of all tokens but the first. What is printed:
tokens/s, the median of the rounds with the slowest and fastest, and how many rows have the same tokens in both
(rounding may choose between two that are almost equally likely).

Needs the package and its `hf` extra. On a CPU each side takes all cores; on a GPU give one that nothing else uses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

N_VOCAB = 50257


def prompts_of(rows: int, length: int) -> list[list[int]]:
    return [np.random.default_rng(row).integers(0, N_VOCAB, length).tolist() for row in range(rows)]


def make(config: str, folder: Path) -> None:
    """Random weights in Hugging Face's format."""
    import jax

    from gpt3_jax import interop, model
    from gpt3_jax.config import load_config

    shape = load_config([config], ["--model.attention_pattern", "[dense]"]).model
    interop.to_hf(jax.jit(model.init, static_argnums=0)(shape, jax.random.key(0)), shape, folder)


Complete = Callable[[int], list[list[int]]]
"""Completes the prompts with so many tokens each."""


def ours(folder: Path, dtype: Any, prompts: list[list[int]]) -> Complete:
    from gpt3_jax.cluster import compilation_cache
    from gpt3_jax.generation import Generator, Greedy
    from gpt3_jax.interop.loading import load_model

    class Numbers:
        """A vocabulary without end-of-text, whose tokens read as their numbers."""

        name, eot, n_vocab = "numbers", -1, N_VOCAB

        def decode_bytes(self, ids: list[int]) -> bytes:
            return "".join(f"{each} " for each in ids).encode()

    compilation_cache.enable()
    loaded = load_model(folder, tokenizer="bytes", weights="compute", dtype=dtype)
    vocabulary: Any = Numbers()
    generator = Generator(loaded.params, loaded.config, vocabulary, consume=True)

    def complete(tokens: int) -> list[list[int]]:
        found = dict(generator.complete(prompts, (), tokens, Greedy()))
        return [[int(each) for each in found[i].text.split()] for i in range(len(prompts))]

    return complete


def theirs(folder: Path, dtype: str, prompts: list[list[int]]) -> Complete:
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(os.cpu_count() or 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to(device)
    module.generation_config.eos_token_id = None
    module.generation_config.pad_token_id = 0
    given = torch.tensor(prompts, device=device)

    def complete(tokens: int) -> list[list[int]]:
        with torch.inference_mode():
            found = module.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, min_new_tokens=tokens,
                do_sample=False, use_cache=True,
            )  # fmt: skip
        return found[:, given.shape[1] :].tolist()  # type: ignore[no-any-return]

    return complete


def serve(complete: Complete, tokens: int) -> None:
    """One round for each line of the input."""
    for n in (1, tokens):
        complete(n)
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds, found = [], []
        for n in (1, tokens):
            started = time.perf_counter()
            found = complete(n)
            seconds.append(time.perf_counter() - started)
        print(json.dumps({"one": seconds[0], "all": seconds[1], "tokens": found}), flush=True)


class Side:
    """One of the two processes."""

    def __init__(self, name: str, argv: list[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, __file__, *argv, "--side", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._read("ready")

    def _read(self, what: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(what):
                return line
        raise SystemExit(f"{self.name} ended with {self._process.wait()}")

    def round(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._read("{"))
        return found

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def report(what: str, tokens: int, rounds: list[list[dict[str, Any]]]) -> None:
    """Prints both sides' rates, and their ratio. `tokens` are those after the first, of all rows."""
    medians = []
    for i, name in enumerate(("ours", "theirs")):
        rates = sorted(tokens / (each[i]["all"] - each[i]["one"]) for each in rounds)
        first = statistics.median(each[i]["one"] for each in rounds)
        medians.append(statistics.median(rates))
        print(f"{what}  {name:6} {medians[-1]:7.1f} tokens/s ({rates[0]:.1f} to {rates[-1]:.1f}), first {first:.3f} s")
    same = sum(a == b for a, b in zip(*(side["tokens"] for side in rounds[-1]), strict=True))
    print(f"{what}  {medians[0] / medians[1]:.2f} times; {same} rows have the same tokens in both", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Greedy generation beside transformers', in turns.")
    parser.add_argument("--config", default="gpt3-small", help="the model's shape (default: %(default)s)")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="(default: %(default)s)")
    parser.add_argument("--rows", default="1,8", help="prompts at once (default: %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side = ours if args.side == "ours" else theirs
        serve(side(args.folder, args.dtypes, prompts_of(int(args.rows), args.prompt_tokens)), args.new_tokens)
        return
    with tempfile.TemporaryDirectory() as made:
        make(args.config, Path(made))
        for dtype in args.dtypes.split(","):
            for rows in args.rows.split(","):
                argv = ["--folder", made, "--dtypes", dtype, "--rows", rows]
                argv += ["--prompt-tokens", str(args.prompt_tokens), "--new-tokens", str(args.new_tokens)]
                sides = [Side(name, argv) for name in ("ours", "theirs")]
                rounds = [[side.round() for side in sides] for _ in range(args.rounds)]
                for side in sides:
                    side.end()
                report(f"{dtype:9} {rows:>2} rows", int(rows) * (args.new_tokens - 1), rounds)


if __name__ == "__main__":
    main()
