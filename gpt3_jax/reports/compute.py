"""Loss of runs against training compute, beside the paper's law (GPT-3 Figure 3.1)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt3_jax.config import Config, ModelConfig, load_config, preset, presets
from gpt3_jax.data.files import is_folder, read_errors, regular
from gpt3_jax.errors import UserError
from gpt3_jax.model.params import count_params, param_table
from gpt3_jax.quantities import count, grid
from gpt3_jax.reports.gpt3_tables import PF_DAY

SCALING_MODELS = tuple(f"scaling-{size}" for size in ("0.1m", "0.4m", "1.2m", "3.2m", "11m", "25m"))
"""The six models below `gpt3-small` for a figure like 3.1: shapes of our own choice, which the paper does not give."""
CAVEAT = (
    "the law is that of the paper's runs: their validation set, per token of their tokenizer, and compute without "
    "embeddings; on other text a run may lie anywhere beside it"
)


def law(pf_days: float) -> float:
    """Validation loss that the paper's best runs reach with so much compute: 2.57 · C^-0.048, nats per token."""
    return float(2.57 * pf_days**-0.048)


def non_embedding_params(model: ModelConfig) -> int:
    """Parameters without token and position embeddings, as Figure 3.1 counts them."""
    table = param_table(dataclasses.replace(model, vocab_multiple=1))
    return count_params(model) - table.token_embedding.size - table.position_embedding.size


def pf_days(parameters: int, tokens: float) -> float:
    """6 operations per parameter and token, attention left out, in PF-days of 8.64e19 (appendix D)."""
    return 6 * parameters * tokens / PF_DAY


@dataclasses.dataclass(frozen=True)
class Curve:
    """Losses of a run by training tokens, in nats per token."""

    name: str
    parameters: int
    """All of them, as Table D.1 counts."""
    non_embedding: int
    tokenizer: str
    train: tuple[tuple[int, float], ...]
    """Tokens and loss on the batches of training."""
    held_out: tuple[tuple[int, float], ...]
    """Tokens and loss on held-out text."""

    @property
    def points(self) -> tuple[tuple[int, float], ...]:
        """The held-out losses; those of training if there are none."""
        return self.held_out or self.train

    def compute(self, tokens: float) -> float:
        """PF-days without embeddings, the law's C."""
        return pf_days(self.non_embedding, tokens)

    def as_data(self) -> dict[str, Any]:
        tokens, loss = self.points[-1]
        return dataclasses.asdict(self) | {
            "tokens": tokens,
            "loss": loss,
            "loss_of": "held-out text" if self.held_out else "training",
            "pf_days": self.compute(tokens),
            "pf_days_with_embeddings": pf_days(self.parameters, tokens),
            "law": law(self.compute(tokens)),
        }


def read_run(folder: str) -> Curve:
    """The losses that a run has logged.

    Raises:
        UserError: the folder is not one of a run, or the run has logged no loss.
        RunError: its files cannot be read.
    """
    path = Path(folder)
    if not is_folder(path):
        raise UserError(f"{folder} is not a folder; expected the folder of a run (its train.run_dir)")
    for name in ("config.yaml", "metrics.jsonl"):
        if not (path / name).is_file():
            raise UserError(f"{folder} has no {name}; expected the folder of a run (its train.run_dir)")
    config: Config = load_config([path / "config.yaml"])
    losses: dict[str, dict[int, float]] = {"train": {}, "eval": {}}
    for number, line in enumerate(_lines(path / "metrics.jsonl"), start=1):
        try:
            row = json.loads(line)
            kind, tokens = row["kind"], row["tokens"]
            if kind in losses and row.get("loss") is not None and tokens > 0:
                losses[kind][tokens] = float(row["loss"])  # of steps that were run again, the last
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path / 'metrics.jsonl'}, line {number} is damaged; remove it") from None
    if not any(losses.values()):
        raise UserError(f"{folder} has logged no loss yet; train it for longer")
    return Curve(
        path.resolve().name,
        count_params(config.model),
        non_embedding_params(config.model),
        config.data.tokenizer,
        *(
            tuple((tokens, loss) for tokens, loss in sorted(found.items()) if math.isfinite(loss))
            for found in losses.values()
        ),
    )


def _lines(path: Path) -> list[str]:
    regular(path)
    with read_errors(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    return text.split("\n")[:-1]  # what follows the last line break is being written


def table(curves: Sequence[Curve]) -> str:
    """The last loss of each run beside the law."""
    rows = []
    for curve in curves:
        tokens, loss = curve.points[-1]
        compute = curve.compute(tokens)
        rows.append(
            [
                curve.name,
                count(curve.non_embedding),
                count(tokens),
                f"{compute:.2e}",
                f"{pf_days(curve.parameters, tokens):.2e}",
                f"{loss:.3f}" + ("" if curve.held_out else " (training)"),
                f"{law(compute):.3f}",
            ]
        )
    head = ["run", "parameters", "tokens", "PF-days", "all parameters", "loss", "2.57 C^-0.048"]
    lines = [grid(rows, head)]
    lines.append("  parameters, PF-days: without embeddings, as in Figure 3.1; all parameters: PF-days as in Table D.1")
    lines.append(f"  {CAVEAT}")
    for curve in curves:
        if "r50k" not in curve.tokenizer:
            lines.append(
                f"  {curve.name}: its tokens are those of {curve.tokenizer}, not the paper's, so its losses do not "
                "compare with the law's"
            )
    return "\n".join(lines) + "\n"


def budget_table() -> str:
    """For the shipped models and the paper's 300 billion tokens: PF-days, and the law's loss."""
    rows = []
    for name in (*SCALING_MODELS, *presets()):
        config = preset(name)
        n, tokens = non_embedding_params(config.model), float(config.train.tokens)
        compute = pf_days(n, tokens)
        everything = pf_days(count_params(config.model), tokens)
        rows.append([name, f"{n:,}", f"{compute:.3g}", f"{everything:.3g}", f"{law(compute):.2f}"])
    head = ["configuration", "parameters", "PF-days", "all parameters", "2.57 C^-0.048"]
    return grid(rows, head) + "\n  for 300 billion tokens; scaling-*: shapes of our own choice\n"
