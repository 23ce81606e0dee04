"""What the harness passes on: the model's arguments, and how a task generates. Needs no harness."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
from collections.abc import Mapping
from typing import Any, Literal

from gpt3_jax.config import ParallelConfig, load_devices
from gpt3_jax.errors import UserError, require_type
from gpt3_jax.generation import Beam, Greedy, Sample
from gpt3_jax.generation.decoding import Decoding, require_seed

NAME = "gpt3-jax"
"""Of the model in the harness: what --model calls it."""
MESH = ("replica", "data", "tensor", "stage")
"""Model arguments that are settings of `ParallelConfig`."""
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelArgs:
    """The arguments in ``--model_args``."""

    pretrained: str
    """Folder of a run or of a Hugging Face model."""
    tokenizer: str | None = None
    """As ``data.tokenizer``. None: the model's own."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the computation. None: that of the run; float32 for a Hugging Face model."""
    parallel: ParallelConfig | None = None
    """A mesh over all devices, and the ZeRO stage by which it keeps the weights. None: the first device alone."""
    batch_tokens: int | None = None
    """Tokens of a batch on one device, padding included. None: `Scorer`'s default."""
    max_length: int | None = None
    """Tokens of context. None: the model's, n_ctx."""
    max_gen_toks: int = 256
    """Tokens that are generated where a task does not say; the harness's own default."""
    seed: int = 0
    """Of sampling."""

    @staticmethod
    def of(given: Mapping[str, Any]) -> ModelArgs:
        """The arguments as the harness has parsed them.

        Raises:
            UserError: an unknown argument, one that is missing, or a value that is impossible.
        """
        known = [field.name for field in dataclasses.fields(ModelArgs) if field.name != "parallel"] + list(MESH)
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"the nearest is {near[0]}" if near else f"expected {', '.join(known)}"
                raise UserError(f"--model_args has {name}={given[name]}, which gpt3-jax does not know; {hint}")
        if given.get("pretrained") in (None, ""):
            raise UserError(
                "--model_args names no model; expected pretrained=FOLDER, that of a run or of a Hugging Face model"
            )
        values = {name: value for name, value in given.items() if name not in MESH}
        values["pretrained"] = str(values["pretrained"])  # a folder's name may be a number
        if values.get("tokenizer") is not None:
            values["tokenizer"] = str(values["tokenizer"])
        if values.get("dtype") == "auto":
            del values["dtype"]
        if values.get("dtype") not in (None, *DTYPES):
            raise UserError(f"--model_args has dtype={values['dtype']}; expected {' or '.join(DTYPES)}")
        for name in ("batch_tokens", "max_length", "max_gen_toks"):
            if values.get(name) is not None:
                _require_positive(f"--model_args {name}", values[name])
        require_seed(values.get("seed", 0))
        mesh = [f"--parallel.{name}={given[name]}" for name in MESH if name in given]
        return ModelArgs(**values, parallel=load_devices(mesh)[0])


@dataclasses.dataclass(frozen=True)
class Generation:
    """How one request generates."""

    stop: tuple[str, ...]
    max_tokens: int
    decoding: Decoding


_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the same setting; of several the first counts, as in the harness."""
_KNOWN = ("until", *_LENGTHS, "do_sample", "temperature", "top_k", "top_p", "num_beams", "length_penalty",
          "early_stopping")  # fmt: skip
_STOPPING: Mapping[Any, Any] = {False: "heuristic", "never": "bound"}


def generation(kwargs: Mapping[str, Any], max_gen_toks: int, seed: int) -> Generation:
    """What a task's ``generation_kwargs`` mean: greedy; a sample with do_sample, or with a temperature above 0 where
    do_sample is not given; beam search with num_beams above 1, by transformers' rule.

    Raises:
        UserError: a setting that this project's generation does not have, or an impossible value.
    """
    for name in kwargs:
        if name not in _KNOWN:
            raise UserError(
                f"generation_kwargs has {name}: {kwargs[name]!r}, which gpt3-jax does not have; expected "
                f"{', '.join(_KNOWN)}"
            )
    until = kwargs.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    length = next((kwargs[name] for name in _LENGTHS if kwargs.get(name) is not None), max_gen_toks)
    _require_positive("generation_kwargs max_gen_toks", length)
    return Generation(tuple(text for text in stop if text), int(length), _decoding(kwargs, seed))


def _decoding(kwargs: Mapping[str, Any], seed: int) -> Decoding:
    temperature = kwargs.get("temperature")
    beams = kwargs.get("num_beams", 1)
    samples = kwargs.get("do_sample")
    if samples is None:
        samples = bool(temperature)
    if samples and beams > 1:
        raise UserError(f"generation_kwargs has do_sample and num_beams: {beams}; expected one of them")
    if samples:
        temperature = 1.0 if temperature is None else temperature
        return Sample(temperature, kwargs.get("top_k") or 0, kwargs.get("top_p", 1.0), seed)
    if beams == 1:
        return Greedy()
    ends = kwargs.get("early_stopping", False)
    if ends not in _STOPPING:
        raise UserError(f"generation_kwargs has early_stopping: {ends!r}; expected False or 'never'")
    return Beam(beams, kwargs.get("length_penalty", 1.0), "power", _STOPPING[ends])


def _require_positive(name: str, value: Any) -> None:
    require_type(name, value, numbers.Integral, "a whole number")
    if value < 1:
        raise UserError(f"{name} is {value}; expected at least 1")
