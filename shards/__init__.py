"""Weights at rest: a shard's files, how they are written, and how they are checked before loading.

A shard is a folder `stage-K` with `graph.onnx` (no weights), `weights.safetensors` (the graph's
external-data file, by offset) and `manifest.json`. Knows neither MQTT nor torch nor onnx.
"""
