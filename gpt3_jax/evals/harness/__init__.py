"""EleutherAI's lm-evaluation-harness on this project's models."""
