"""A running language model behind an OpenAI-compatible HTTP interface."""
