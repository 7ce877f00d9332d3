"""Feeds and watches a pipeline: a window of batches in flight, every result counted once."""
