"""The Python API: a plan, and a pipeline to feed.

from shardline import open_pipeline

with open_pipeline("pi-0:1883") as pipeline:
    for result in pipeline.run(batches):
        ...
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# A stage starts by `shardline stage`, and must not wait for the client's modules.
_ROOMS = {
    "Batch": "client.batch",
    "BatchResult": "client.batch",
    "DeadBatch": "client.batch",
    "Pipeline": "client.pipeline",
    "Plan": "contract.plan",
    "TlsFiles": "broker.transport",
    "load_plan": "contract.plan",
    "open_pipeline": "client.open",
}


def __getattr__(name: str) -> Any:
    """Import a name of the API when it is first asked for (PEP 562)."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_ROOMS[name]), name)
    return value
