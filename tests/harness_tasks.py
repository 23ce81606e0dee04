"""Five tasks for lm-evaluation-harness, as files: invented items, read without a network."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

PLACES: list[tuple[str, str]] = [
    ("Arvenia", "Tollmark"), ("Besk", "Orin"), ("Caldor", "Fennwick"), ("Dravia", "Östbro"), ("Elmora", "Saint-Ruel"),
    ("Fjord Isles", "Halden"), ("Gorm", "Velka"), ("Hesperia", "Nova Lume"), ("Istria Minor", "Pell"),
    ("Jutmark", "Graven"), ("Kesh", "Al-Dun"), ("Lorwin", "Mossgate"), ("Mirova", "Černá"), ("Nasheland", "Port Ade"),
    ("Ostwick", "Brannoch"), ("Perrin", "Two Rivers"),
]  # fmt: skip
PEOPLE = ["Ana", "Bo", "Cem", "Dita", "Eli"]
THINGS = ["a red kite", "the old map", "three eggs", "her brother's boat", "a jar of naïve paint"]


def rows() -> dict[str, list[dict[str, Any]]]:
    """Each task's items."""
    rng = random.Random(0)
    capitals: list[dict[str, Any]] = []
    for country, capital in PLACES:
        others = rng.sample([other for _, other in PLACES if other != capital], 3)
        choices = rng.sample([capital, *others], 4)
        capitals.append({"question": f"What is the capital of {country}?", "choices": choices,
                         "answer": choices.index(capital)})  # fmt: skip
    letters: list[dict[str, Any]] = []
    for row in capitals:
        listed = [f"{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True)]
        letters.append({**row, "letters": "\n".join(listed)})
    stories = [
        f"{rng.choice(PEOPLE)} found {rng.choice(THINGS)} and gave it to {rng.choice(PEOPLE)}." for _ in range(16)
    ]
    texts = [" ".join(rng.choices(stories, k=k)) for k in (1, 2, 3, 5, 40)] + ["Ω", ""]
    sums = [{"a": rng.randrange(10), "b": rng.randrange(10)} for _ in range(16)]
    return {
        "capitals": capitals,
        "letters": letters,
        "stories": [{"context": story[: story.rindex(" ")], "ending": story[story.rindex(" ") :]} for story in stories],
        "texts": [{"text": text} for text in texts],
        "sums": [{**row, "sum": row["a"] + row["b"]} for row in sums],
    }


def metric(name: str, aggregation: str = "mean", better: bool = True, **more: Any) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": better, **more}


TASKS: dict[str, dict[str, Any]] = {
    "capitals": {
        "output_type": "multiple_choice", "num_fewshot": 2,
        "doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_choice": "{{choices}}", "doc_to_target": "answer",
        "metric_list": [metric("acc"), metric("acc_norm")],
    },
    "letters": {
        "output_type": "multiple_choice", "num_fewshot": 1,
        "doc_to_text": "{{question}}\n{{letters}}\nAnswer:", "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer", "metric_list": [metric("acc"), metric("acc_norm")],
    },
    "stories": {
        "output_type": "loglikelihood", "doc_to_text": "{{context}} ", "doc_to_target": "{{ending}}",
        "target_delimiter": "", "metric_list": [metric("perplexity", "perplexity", False), metric("acc")],
    },
    "texts": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text",
        "metric_list": [
            metric("word_perplexity", "weighted_perplexity", False),
            metric("byte_perplexity", "weighted_perplexity", False),
            metric("bits_per_byte", "bits_per_byte", False),
        ],
    },
    "sums": {
        "output_type": "generate_until", "num_fewshot": 3,
        "doc_to_text": "{{a}} + {{b}} =", "doc_to_target": "{{sum}}",
        "generation_kwargs": {"until": ["\n", "+"], "max_gen_toks": 6, "do_sample": False, "temperature": 0.0},
        "metric_list": [metric("exact_match")],
    },
}  # fmt: skip


def write(folder: Path, prefix: str = "invented_") -> list[str]:
    """Writes a YAML and a JSONL file for each task. Returns their names in the harness."""
    for name, items in rows().items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
        task = {
            "task": prefix + name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "fewshot_split": "test",
            **TASKS[name],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, allow_unicode=True), encoding="utf-8")
    return [prefix + name for name in TASKS]
