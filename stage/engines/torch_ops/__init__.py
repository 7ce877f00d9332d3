"""ONNX operators of the default domain in torch, and the loader that strings them together.

A function's positional parameters are the operator's inputs (None: omitted) and its keyword
parameters the attributes, with the names and defaults of https://onnx.ai/onnx/operators. No
operator writes into an input: inputs are mapped weights, or values that another node reads too.
"""
