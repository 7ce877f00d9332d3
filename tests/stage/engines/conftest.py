"""A factory that turns an ONNX model into a shard on disk."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from contract.tensor_spec import TensorSpec
from shards.manifest import ShardManifest
from shards.reader import Shard
from shards.writer import ByteRange, write_manifest, write_shard_files

ShardOf = Callable[[ModelProto], Shard]


def tensor_spec(value: ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    # Unvalidated: operators are tested on empty tensors too, which no plan may have.
    return TensorSpec.model_construct(
        name=value.name,
        dtype=np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name,
        shape=tuple(d.dim_value if d.HasField("dim_value") else "batch" for d in tensor.shape.dim),
    )


def write_shard(folder: Path, model: ModelProto) -> Shard:
    """Float initialisers of two or more axes go to the weights file, as the planner does."""
    external = {
        proto.name: proto
        for proto in model.graph.initializer
        if proto.data_type == TensorProto.FLOAT and len(proto.dims) >= 2
    }

    def graph(ranges: Mapping[str, ByteRange]) -> bytes:
        for name, proto in external.items():
            proto.ClearField("raw_data")
            proto.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", "weights.safetensors"),
                ("offset", str(ranges[name].offset)),
                ("length", str(ranges[name].length)),
            ):
                proto.external_data.add(key=key, value=value)
        return model.SerializeToString()

    weights = {name: numpy_helper.to_array(proto) for name, proto in external.items()}
    files = write_shard_files(folder, weights, graph)
    manifest = ShardManifest(
        plan_id="plan",
        stage_index=0,
        graph=files.graph,
        weights=files.weights,
        inputs=tuple(map(tensor_spec, model.graph.input)),
        outputs=tuple(map(tensor_spec, model.graph.output)),
        verified_with={},
    )
    write_manifest(folder, manifest)
    return Shard(folder, manifest)


@pytest.fixture
def shard_of(tmp_path: Path) -> ShardOf:
    return lambda model: write_shard(tmp_path / f"stage-{len(list(tmp_path.iterdir()))}", model)
