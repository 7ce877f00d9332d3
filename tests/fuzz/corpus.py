"""Good inputs of each target, to begin with: golden messages, and the files of a tiny plan."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from contract.activation import BatchId, Header, Hop, encode
from contract.blob import BlobChunk, BlobRefusal, BlobRequest, encode_chunk
from contract.clock import ClockAnswer, ClockRequest
from contract.codec import CODECS, compress
from contract.plan import Plan
from contract.tensor_spec import TensorSpec
from tests.contract.test_activation_format import GOLDEN
from tests.tiny import make_tiny_plan

SPECS = (
    TensorSpec(name="x", dtype="float32", shape=("batch", 3, 4)),
    TensorSpec(name="ids", dtype="int64", shape=("batch",)),
)
"""What the codecs expand to in the activation target."""
FILES = ("manifest.json", "weights.safetensors", "graph.onnx")
"""The files of a shard; the first byte of an input of that target picks one."""
TRANSFERRED = bytes(range(256)) * 9 + b"the end"
"""The file of the blob target."""


class Built(NamedTuple):
    """A tiny plan, and the files of its second shard by name."""

    plan: Plan
    files: dict[str, bytes]


@cache
def built() -> Built:
    with TemporaryDirectory(prefix="fuzz-corpus-") as folder:
        plan = make_tiny_plan(Path(folder), codecs=("int8", "float16"))
        shard = Path(folder) / plan.name / "stage-1"
        return Built(plan, {name: (shard / name).read_bytes() for name in FILES})


def header(plan_id: str, **changes: object) -> Header:
    fields: dict[str, object] = {
        "plan_id": plan_id,
        "batch_id": BatchId(0xDEADBEEF, 7),
        "attempt": 1,
        "low": 3,
        "stage_index": 1,
        "route": ("pi-0", "pi-1", "pi-2"),
        "client": "client-1",
        "sent_us": 1,
        "trace": (Hop(1, 2, 3, 4),),
        "scalars": (("past", 5),),
    }
    return Header(**{**fields, **changes})  # type: ignore[arg-type]


def activations() -> list[bytes]:
    """One of each codec, the golden one, and one that the stage of the target runs."""
    generator = np.random.default_rng(0)
    tensors = {
        "x": generator.standard_normal((2, 3, 4)).astype(np.float32),
        "ids": np.arange(2, dtype=np.int64),
    }
    found = [GOLDEN]
    for codec in CODECS:
        found.append(encode(header("0" * 16, codec=codec), compress(codec, tensors)))
    plan = built().plan
    hidden = {"hidden_0": generator.standard_normal((2, 16)).astype(np.float32)}
    codec = plan.codec_of_edge(1)
    found.append(encode(header(plan.plan_id, codec=codec), compress(codec, hidden)))
    return found


def plans() -> list[bytes]:
    plan = built().plan
    bare = json.loads(plan.to_json())
    bare |= {"placement": [], "topic_map": []}
    clocks = (ClockRequest(number=1), ClockAnswer(number=1, received_us=2, sent_us=3))
    small = [message.model_dump_json().encode() for message in clocks]
    return [plan.to_json().encode(), plan.to_message().encode(), json.dumps(bare).encode(), *small]


def shards() -> list[bytes]:
    return [bytes([index]) + built().files[name] for index, name in enumerate(FILES)]


def blobs() -> list[bytes]:
    sha = "ab" * 32
    messages = [
        BlobRequest(sha256=sha, offset=5, length=10).model_dump_json().encode(),
        BlobRefusal(sha256=sha, detail="no such file").model_dump_json().encode(),
        encode_chunk(BlobChunk(sha, 7, b"shard!")),
    ]
    return [b"\0" * 40, bytes(range(200)), *(b"\xff" + message for message in messages)]


CORPUS = {"activation": activations, "plan": plans, "shard": shards, "blob": blobs}
