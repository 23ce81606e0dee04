"""What generation or evaluation computes at once, where it is planned."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jax.sharding import Mesh

from gpt3_jax.config import Config
from gpt3_jax.errors import UserError
from gpt3_jax.parallel.mesh import batch_shards

Use = Literal["evaluate", "generate"]
GENERATED_ROWS = 16
"""Rows of a tensor group of devices, completions or hypotheses, as `gpt3_jax.generation` computes at once."""
PAPER_BEAMS = 4
"""Hypotheses of a free answer's beam search (GPT-3 section 2.4), as `gpt3_jax.evals` has it."""
EVALUATED_TOKENS = 16384
"""Tokens of a batch shard, as `gpt3_jax.evals` computes at once on accelerators."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """What is computed at once."""

    rows: int
    """Of all devices."""
    prompt_tokens: int
    """Of a row; when evaluating, all its tokens."""
    new_tokens: int
    """That a row's cache has room for; when evaluating, 0."""
    beams: int | None = None
    """Hypotheses of each prompt, a row each; None: a token is drawn for each row, without a search."""

    @property
    def prompts(self) -> int:
        """Prompts that are read at once, of all devices."""
        return self.rows // (self.beams or 1)


def batch_of(
    config: Config,
    mesh: Mesh,
    use: Use,
    rows: int | None,
    prompt_tokens: int | None,
    new_tokens: int | None,
    beams: int | None = None,
) -> Batch:
    """The batch that these options ask for.

    Args:
        rows: of each data shard (default: 16 to generate, or as many whole prompts as fit 16 rows; to evaluate as many
            contexts as make 16,384 tokens).
        prompt_tokens: default: half the context; to evaluate, the whole.
        new_tokens: default: what the prompt leaves of the context.
        beams: hypotheses of each prompt (default: no beam search).

    Raises:
        UserError: they do not fit the context, or the rows are no whole prompts.
    """
    n_ctx, shards = config.model.n_ctx, batch_shards(mesh)
    for option, value in (
        ("--rows", rows),
        ("--prompt-tokens", prompt_tokens),
        ("--new-tokens", new_tokens),
        ("--beams", beams),
    ):
        if value is not None and value < 1:
            raise UserError(f"{option} is {value}; expected at least 1")
    if use == "evaluate":
        if new_tokens is not None:
            raise UserError(f"--new-tokens {new_tokens} is for --for generate; evaluation appends no token")
        if beams is not None:
            raise UserError(f"--beams {beams} is for --for generate; evaluation's free answers are generated")
        length = n_ctx if prompt_tokens is None else prompt_tokens
        if length > n_ctx:
            raise UserError(f"--prompt-tokens is {length}; expected at most {n_ctx} (model.n_ctx)")
        return Batch(shards * (rows or max(1, EVALUATED_TOKENS // length)), length, 0)
    prompt = max(1, n_ctx // 2) if prompt_tokens is None else prompt_tokens
    new = n_ctx - prompt if new_tokens is None else new_tokens
    if new < 1 or prompt + new > n_ctx:
        raise UserError(
            f"--prompt-tokens {prompt} and --new-tokens {new}: at least one new token is needed, and their sum may be "
            f"at most {n_ctx} (model.n_ctx)"
        )
    width = beams or 1
    if rows is not None and rows % width:
        raise UserError(f"--rows {rows} is not divisible by --beams {beams}; each prompt has a row for each hypothesis")
    return Batch(shards * (rows or max(1, GENERATED_ROWS // width) * width), prompt, new, beams)
