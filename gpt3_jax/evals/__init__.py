"""Evaluation by the paper's protocol: requests, the engine that answers them, prompts, scoring and tasks."""
