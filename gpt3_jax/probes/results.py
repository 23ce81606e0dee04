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


@dataclasses.dataclass(frozen=True)
class Bias:
    """What was found of one or several models."""

    found: Mapping[str, Mapping[str, Found]]
    """By model, then by probe."""
    models: tuple[Mapping[str, Any], ...]
    setup: Setup
    made_by: Mapping[str, Any]

    def table(self) -> str:
        parts = []
        for model, probes in self.found.items():
            for probe, found in probes.items():
                parts.append(f"{model}: {TITLES[probe]}\n{found.table()}")
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
