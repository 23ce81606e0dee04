"""The peer of `prove-gpu.sh`: a training step in PyTorch, made as nanoGPT's train.py makes it. Needs torch alone, and
transformers where there is no nanoGPT.

    peer_pytorch.py matmul                      bf16 matmuls of 8192³
    peer_pytorch.py small|xl SIZES [SIZES ...]  training steps; of each list of microbatches (16,8) the first that fits

torch.compile, bf16 autocast, fused AdamW, gradients clipped at 1, flash attention (SDPA), TF32 where fp32 is left; all
layers dense. The model is nanoGPT's own model.py where Python finds it as `model` (PYTHONPATH), else transformers'
GPT2LMHeadModel. One line of JSON for each list; utilisation is worked out by `gpt3_jax.bench.proof`. TINY=1: tiny.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

TINY = bool(os.environ.get("TINY"))
CONTEXT, VOCAB = (32, 128) if TINY else (2048, 50304)
STEPS, ROUNDS = (2, 2) if TINY else (8, 3)
MATMUL, CALLS = (256, 2) if TINY else (8192, 30)
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"


class Shape(NamedTuple):
    """Of a model; small and xl are GPT-3's (Table 2.1), XL with its 16 heads of 128."""

    layers: int
    heads: int
    width: int


SHAPES = {"small": Shape(12, 12, 768), "xl": Shape(24, 16, 2048)}


class Peer(NamedTuple):
    """A model to train."""

    name: str
    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]
    """Of the compiled module, tokens and targets [B, T]."""


def nanogpt(shape: Shape) -> Peer:
    """nanoGPT's own model and optimizer. Raises ImportError where Python does not find them."""
    from model import GPT, GPTConfig

    sizes = {"n_layer": shape.layers, "n_head": shape.heads, "n_embd": shape.width}
    module = GPT(GPTConfig(**sizes, block_size=CONTEXT, vocab_size=VOCAB, bias=True, dropout=0.0)).to(DEVICE)
    optimizer = module.configure_optimizers(0.1, 6e-4, (0.9, 0.95), DEVICE)
    return Peer("nanoGPT", module, optimizer, lambda run, x, y: run(x, y)[1])


def transformers_gpt2(shape: Shape) -> Peer:
    """The same model by transformers, with nanoGPT's optimizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings: dict[str, Any] = {
        "n_layer": shape.layers, "n_head": shape.heads, "n_embd": shape.width, "n_positions": CONTEXT,
        "vocab_size": VOCAB, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False,
        "attn_implementation": "sdpa",
    }  # fmt: skip
    module: Any = GPT2LMHeadModel(GPT2Config(**settings))
    module = module.to(DEVICE)
    matrices, others = ([p for p in module.parameters() if (p.dim() >= 2) is matrix] for matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]

    def loss(run: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # Given as `labels`, targets would be shifted once more.
        return torch.nn.functional.cross_entropy(run(input_ids=x).logits.view(-1, VOCAB), y.view(-1))

    return Peer("transformers", module, torch.optim.AdamW(groups, 6e-4, (0.9, 0.95), fused=ON_GPU), loss)


def measure(name: str, microbatch: int) -> dict[str, object]:
    """The median of some rounds of steps, each step dispatched behind the one before."""
    torch.manual_seed(0)
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    shape = Shape(2, 2, 32) if TINY else SHAPES[name]
    try:
        peer = nanogpt(shape)
    except ImportError:
        peer = transformers_gpt2(shape)
    run = torch.compile(peer.module.train())
    x, y = torch.randint(0, min(VOCAB, 50257), (2, microbatch, CONTEXT), device=DEVICE)

    def seconds(steps: int) -> tuple[float, float]:
        """Of a step; and the last one's loss, whose reading waits for the device."""
        started = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(DEVICE, dtype=torch.bfloat16):
                loss = peer.loss(run, x, y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(peer.module.parameters(), 1.0)
            peer.optimizer.step()
            peer.optimizer.zero_grad(set_to_none=True)
        last = float(loss.detach())
        return (time.perf_counter() - started) / steps, last

    first, _ = seconds(1)
    seconds(2)
    rounds = sorted(seconds(STEPS) for _ in range(ROUNDS))
    step, loss = rounds[ROUNDS // 2]
    return {
        "peer": peer.name,
        "model": name,
        "microbatch": microbatch,
        "layers": shape.layers,
        "width": shape.width,
        "context": CONTEXT,
        "parameters": sum(p.numel() for p in peer.module.parameters()),
        "tokens_per_second": microbatch * CONTEXT / step,
        "step_seconds": step,
        "fastest_seconds": rounds[0][0],
        "slowest_seconds": rounds[-1][0],
        "first_step_seconds": first,
        "loss": loss,
        "memory": torch.cuda.max_memory_allocated() if ON_GPU else 0,
        "device": torch.cuda.get_device_name() if ON_GPU else "cpu",
        "torch": torch.__version__,
    }


def matmul() -> dict[str, object]:
    """What PyTorch's matmul reaches, as `gpt3-jax bench ceilings` measures JAX's."""
    a, b = (torch.randn(MATMUL, MATMUL, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    rounds = []
    for _ in range(4):  # the first one warms up
        started = time.perf_counter()
        for _ in range(CALLS):
            a @ b
        if ON_GPU:
            torch.cuda.synchronize()
        rounds.append((time.perf_counter() - started) / CALLS)
    return {"matmul_flops": 2.0 * MATMUL**3 / min(rounds[1:]), "matmul_size": MATMUL, "torch": torch.__version__}


def main(arguments: list[str]) -> None:
    """Measures and prints."""
    if not ON_GPU and not TINY:
        raise SystemExit(f"PyTorch {torch.__version__} has no GPU here; TINY=1 tries the script on a CPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if arguments == ["matmul"]:
        print(json.dumps(matmul()), flush=True)
        return
    name, *lists = arguments
    for sizes in lists:
        for microbatch in map(int, sizes.split(",")):
            try:
                result = measure(name, microbatch)
            except RuntimeError as error:  # OutOfMemoryError, or what the compiler makes of it
                if "out of memory" not in str(error):
                    raise
                result = {"peer": "does not fit", "model": name, "microbatch": microbatch}
            print(json.dumps(result), flush=True)
            torch._dynamo.reset()
            gc.collect()
            if ON_GPU:
                torch.cuda.empty_cache()
            if "loss" in result:
                break


if __name__ == "__main__":
    main(sys.argv[1:])
