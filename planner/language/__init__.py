"""Language models from a transformers directory: import, canonical form, quantisation, checks.

The same splitter and partitioner as for CNNs cut what comes out of here. No weight is held longer
than it takes to copy it: the exporter sees stand-ins, and tensors go from file to file one by one.
"""
