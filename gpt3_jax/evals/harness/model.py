"""The harness's view of a model.

The harness sends token ids to be scored as it does to its own `hf` model: its rules for splitting context and
continuation, for windows and for what is too long are the harness's, not those of `evals.engine`.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from gpt3_jax.cluster import compilation_cache
from gpt3_jax.cluster.log import log
from gpt3_jax.config import ParallelConfig
from gpt3_jax.environment import start_devices
from gpt3_jax.errors import UserError
from gpt3_jax.evals.harness.options import Generation, ModelArgs, generation
from gpt3_jax.evals.one_set import OneSet
from gpt3_jax.evals.scorer import Scorer
from gpt3_jax.generation import Sample
from gpt3_jax.interop.loading import load_model
from gpt3_jax.model.params import count_params
from gpt3_jax.parallel.mesh import make_mesh

_Pair = tuple[Sequence[int], Sequence[int]]


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A run, or a model in Hugging Face's format.

    To the harness it is one process with all requests, whatever the mesh: the rows of a batch are split over the mesh
    here. In a multi-process run each process makes the same calls, and the first one writes.
    """

    def __init__(
        self, batch_size: Any = None, max_batch_size: Any = None, device: str | None = None, **model_args: Any
    ) -> None:
        """Loads the model.

        Args:
            batch_size, max_batch_size, device: of the harness's command line; without effect.
            model_args: see `ModelArgs`.

        Raises:
            UserError: as `ModelArgs.of`, `load_model` and `make_mesh`.
            RunError: as `load_model`.
        """
        super().__init__()
        model_args.pop("trust_remote_code", None)  # added by the harness's option of this name; there is no code to run
        args = ModelArgs.of(model_args)
        _say_what_is_ignored(batch_size, device)
        start_devices()
        compilation_cache.enable()
        mesh = None if args.parallel is None else make_mesh(args.parallel)
        loaded = load_model(
            args.pretrained,
            tokenizer=args.tokenizer,
            mesh=mesh,
            parallel=args.parallel or ParallelConfig(),
            weights="compute",
            dtype=args.dtype,
        )
        config = loaded.config
        if args.max_length is not None and args.max_length > config.n_ctx:
            raise UserError(
                f"--model_args has max_length={args.max_length}; the model's context, n_ctx, is {config.n_ctx}"
            )
        self.config, self._args, self._mesh = config, args, mesh
        self._fingerprint = loaded.fingerprint
        self._tokenizer = loaded.tokenizer
        scorer = Scorer(loaded.params, config, mesh, args.parallel, batch_tokens=args.batch_tokens)
        self._uses = OneSet(scorer, loaded.tokenizer, mesh, consume=True)
        if jax.process_count() > 1:
            # The harness's own sign for processes that share one model: the first alone prints and writes.
            os.environ["LOCAL_RANK"] = str(jax.process_index())

    # -- what the harness asks about the model ---------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.eot

    @property
    def max_length(self) -> int:
        return self._args.max_length or self.config.n_ctx

    @property
    def max_gen_toks(self) -> int:
        return self._args.max_gen_toks

    @property
    def tokenizer_name(self) -> str:
        return f"{self._tokenizer.name}-{self._tokenizer.fingerprint[:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids. Nothing is added, and the name of a special token is ordinary text."""
        return self._tokenizer.encode(string)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        raise UserError("--apply_chat_template: models of this project have no chat template; leave it out")

    def set_cache_hook(self, cache_hook: Any) -> None:
        if jax.process_count() > 1:
            raise UserError(
                "--use_cache keeps one file a process, and these may differ; leave it out of a run of several"
            )
        super().set_cache_hook(cache_hook)

    def get_model_info(self) -> dict[str, Any]:
        """For the harness's result file."""
        return {
            "model_num_parameters": count_params(self.config),
            "model_dtype": self.config.dtype,
            "model_sha": self._fingerprint,
            "tokenizer_sha": self._tokenizer.fingerprint,
            "platform": jax.default_backend(),
            "mesh": dict(self._mesh.shape) if self._mesh is not None else None,
            "batch_tokens": self._uses.batch_tokens,
        }

    # -- likelihoods -----------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether each of its tokens is the likeliest."""
        pairs = [self._fitting(context, continuation) for _, context, continuation in requests]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        with _progress(len(pairs), "loglikelihood", disable_tqdm) as bar:
            for i, likelihood in self._uses.scorer().stream(pairs):
                found[i] = likelihood.logprob, likelihood.greedy
                self.cache_hook.add_partial("loglikelihood", requests[i][0], found[i])
                bar.update()
        return found

    def _fitting(self, context: Sequence[int], continuation: Sequence[int]) -> _Pair:
        """Cuts the context from the left where both do not fit, as the harness does. Spaces at its end are the
        continuation's by then, so nothing may be left of it."""
        if not continuation:
            raise UserError(
                "a continuation has no token of its own: it is empty, or its text and the context's end are one token"
            )
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise UserError(
                f"a continuation is {len(continuation)} tokens long; the model's context holds {self.max_length}"
            )
        return context[-room:] or [self.prefix_token_id], continuation

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text, in windows without overlap: the last one has as much context as fits."""
        pairs: list[_Pair] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            parts = [make_disjoint_window(window) for window in windows]
            pairs += parts
            owners += [i] * len(parts)
        found = [0.0] * len(requests)
        left = Counter(owners)
        with _progress(len(pairs), "loglikelihood_rolling", disable_tqdm) as bar:
            for n, likelihood in self._uses.scorer().stream(pairs):
                i = owners[n]
                found[i] += likelihood.logprob
                left[i] -= 1
                if not left[i]:
                    self.cache_hook.add_partial("loglikelihood_rolling", requests[i].args, found[i])
                bar.update()
        return found

    # -- generation ------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Completions, in front of the stop strings. A context is cut from the left to leave room for them."""
        groups: dict[Generation, list[int]] = {}
        asked = Counter[str]()
        for i, request in enumerate(requests):
            context, kwargs = request.args
            how = generation(kwargs, self.max_gen_toks, self._args.seed)
            if isinstance(how.decoding, Sample):
                # A task that repeats a request wants different samples.
                seed = (how.decoding.seed + asked[context]) % 2**32
                how = dataclasses.replace(how, decoding=dataclasses.replace(how.decoding, seed=seed))
                asked[context] += 1
            groups.setdefault(how, []).append(i)
        found = [""] * len(requests)
        with _progress(len(requests), "generate_until", disable_tqdm) as bar:
            for how, group in groups.items():
                for n, text in self._complete([requests[i].args[0] for i in group], how):
                    found[group[n]] = text
                    self.cache_hook.add_partial("generate_until", requests[group[n]].args, text)
                    bar.update()
        return found

    def _complete(self, contexts: list[str], how: Generation) -> Iterable[tuple[int, str]]:
        room = self.max_length - how.max_tokens
        if room < 1:
            raise UserError(
                f"a task generates up to {how.max_tokens} tokens; the model's context holds {self.max_length}, and has "
                "to hold the prompt too: set --gen_kwargs max_gen_toks=N, or max_gen_toks=N in --model_args where the "
                "task does not say"
            )
        prompts = [self.tok_encode(context)[-room:] for context in contexts]
        for n, completed in self._uses.generator().complete(prompts, how.stop, how.max_tokens, how.decoding):
            yield n, completed.text


def _progress(total: int, what: str, disabled: bool) -> Any:
    return tqdm(total=total, desc=f"Running {what} requests", disable=disabled or jax.process_index() > 0)


def _say_what_is_ignored(batch_size: Any, device: str | None) -> None:
    if str(batch_size) not in ("None", "1", "auto"):  # 1 is the harness's default
        log.info(
            f"--batch_size {batch_size} has no effect: requests are batched by their tokens; batch_tokens=N in "
            "--model_args sets how many a device computes at once"
        )
    if device not in (None, "cuda:0"):  # its default
        log.info(f"--device {device} has no effect: JAX chooses its devices, or JAX_PLATFORMS does")
