"""The Python API: a plan, and a pipeline to feed.

from shardline import open_pipeline

with open_pipeline("pi-0:1883") as pipeline:
    for result in pipeline.run(batches):
        ...
"""

from broker.transport import TlsFiles
from client.batch import Batch, BatchResult, DeadBatch
from client.open import open_pipeline
from client.pipeline import Pipeline
from contract.plan import Plan, load_plan

__all__ = [
    "Batch",
    "BatchResult",
    "DeadBatch",
    "Pipeline",
    "Plan",
    "TlsFiles",
    "load_plan",
    "open_pipeline",
]
