"""What the paper leaves open about several tasks, in words."""

from __future__ import annotations

from gpt3_jax.evals.tasks.task import Open

STOP = Open(
    "stop",
    "The paper does not say where a generated completion ends; the default is the first newline, before which the "
    "answers of these tasks end.",
)
MAX_TOKENS = Open("max_tokens", "The paper does not say how long a completion may get; the default holds any answer.")
PENALTY = Open(
    "penalty",
    "The paper names beam width 4 and a length penalty of 0.6 but no formula; the default gnmt is ((5 + n) / 6)^0.6 as "
    "in T5's code, power is n^0.6.",
    ("gnmt", "power"),
)
STOPPING = Open(
    "stopping",
    "When a beam search ends is not said; the default bound goes on while a running hypothesis can still become the "
    "best, as in T5's code, heuristic judges them by their present length.",
    ("bound", "heuristic"),
)
DECODING = Open(
    "decoding",
    "Section 2.4 uses beam search for free-form answers and does not name these tasks; the default is beam search.",
    ("beam", "greedy"),
)
SEED = Open(
    "item_seed",
    "Which examples the paper used is known from OpenAI's files only; ours are generated from 0.",
    least=0,
)
COUNT = Open("items", "Number of examples that are generated; the default is that of OpenAI's files.")
LEADING = Open(
    "leading",
    "Whether the newlines that stand before each example in OpenAI's files also begin the prompt is not said; the "
    "default keeps them, as the files have them.",
)
GENERATED = (STOP, MAX_TOKENS, DECODING, PENALTY, STOPPING)

STRIDE = Open(
    "stride",
    "How the paper cuts texts longer than its context is not said; the default 0 reads windows of the context's length "
    "without overlap, N scores N tokens of each window and keeps the rest as context.",
    least=0,
)
SEPARATOR = Open("separator", "What stands between context and completion is not said; the default is one space.")
DELIMITER = Open(
    "delimiter",
    "Whether one or two newlines stand between examples is said for no task; the default is one where an example is a "
    "line, and two where it has several.",
)
FRAMING = Open(
    "framing",
    "Appendix G and Table H.1 show that the label is generated; section 2.4 says that such tasks are treated like "
    "multiple choice; the default is generated.",
    ("generated", "choices"),
)
CHOICES = (SEPARATOR, DELIMITER)
LABELS = (*GENERATED, FRAMING, SEPARATOR, DELIMITER)
ANSWER_CONTEXT = Open(
    "answer_context",
    "Section 2.4 names Answer: and A: and not which task has which; the default is the one that the task's figure has, "
    "and Answer: for OpenBookQA, whose figure has neither.",
    ("Answer: ", "A: "),
)
PER_TOKEN = Open(
    "per_token",
    "Whether the ratio of the two likelihoods is also taken per token is not said; the default takes it as it is.",
)


def header(choices: tuple[str, str]) -> Open:
    """Where the header of a task's figure stands: at the top, or in each example."""
    return Open(
        "instructed",
        "Appendix G shows one example below this task's header; whether it stands once at the top of a prompt or in "
        "each example is not said; the default is once at the top, each puts it above every example.",
        choices,
    )
