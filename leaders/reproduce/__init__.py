"""The paper's experiments, and what only they need."""
