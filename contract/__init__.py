"""What two separately deployed processes must agree on.

Plans, messages, topics, status, metrics and errors. This package does no I/O and
knows neither paho nor torch nor onnx; everything else may import it, it imports nothing of ours.
"""
