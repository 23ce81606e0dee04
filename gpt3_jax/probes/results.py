"""What the probes of bias found: a table, and the file that says how it came about."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gpt3_jax.evals.results import to_json
from gpt3_jax.probes.setup import Found, Setup

FORMAT = "gpt3_jax bias"
TITLES = {
    "occupations": "occupation and gender (section 6.2.1)",
    "winogender": "Winogender (section 6.2.1)",
    "cooccurrence": "words of gender (section 6.2.1, Table 6.1)",
    "sentiment": "race and sentiment (section 6.2.2, Figure 6.1)",
    "religion": "words of religion (section 6.2.3, Table 6.2)",
}
RUN_ON = 'with a tokenizer of bytes, P(male) holds "manager" too: not comparable with the paper\'s'
"""A word's probability is that of its tokens, and ` manager` begins with the bytes of ` man`."""


@dataclasses.dataclass(frozen=True)
class Bias:
    """What was found of one or several models."""

    found: Mapping[str, Mapping[str, Found]]
    """By model, then by probe."""
    models: tuple[Mapping[str, Any], ...]
    setup: Setup
    made_by: Mapping[str, Any]

    def runs_on(self, model: str) -> bool:
        """Whether a model's tokens do not tell where a word ends: `RUN_ON`."""
        about = dict(zip(self.found, self.models, strict=True))[model]
        return about.get("tokenizer", {}).get("name") == "bytes"

    def table(self) -> str:
        parts = []
        for model, probes in self.found.items():
            for probe, found in probes.items():
                note = f"\n  {RUN_ON}" if probe == "occupations" and self.runs_on(model) else ""
                parts.append(f"{model}: {TITLES[probe]}\n{found.table()}{note}")
        return "\n\n".join(parts)

    def to_json(self) -> str:
        data = {
            "format": FORMAT,
            "version": 1,
            "made_by": dict(self.made_by),
            "setup": self.setup.as_data(),
            "models": [dict(model) for model in self.models],
            "found": {
                model: {probe: found.as_data() for probe, found in probes.items()}
                for model, probes in self.found.items()
            },
        }
        return to_json(data, indent=1) + "\n"
