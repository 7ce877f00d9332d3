"""Tensors of an ONNX graph in torch: small ones from the graph itself, weights mapped from disk."""

from pathlib import Path

import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from contract.errors import EngineError
from shards.reader import Shard

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.BFLOAT16: torch.bfloat16,
}


def dtype_of(data_type: int) -> torch.dtype:
    """The torch dtype of an ONNX ``TensorProto.DataType``.

    Raises:
        ValueError: torch has none.
    """
    if data_type not in DTYPES:
        raise ValueError(f"data type {TensorProto.DataType.Name(data_type)} is not supported")
    return DTYPES[data_type]


def tensor_from_graph(proto: TensorProto) -> Tensor:
    """A tensor whose bytes lie in the graph itself, copied out of it."""
    values = torch.tensor(numpy_helper.to_array(proto))
    return values.to(dtype_of(proto.data_type))


class WeightFile:
    """A shard's weights file, mapped. Its tensors are views: pages are read when first used.

    The mapping is private (copy on write), so torch sees writable memory, gives no warning about
    read-only buffers, and the file could not be changed even by an operator with a bug.
    """

    def __init__(self, shard: Shard) -> None:
        self._path: Path = shard.weights_path
        self._size = self._path.stat().st_size
        self._bytes = torch.from_file(
            str(self._path), shared=False, size=self._size, dtype=torch.uint8
        )

    def tensor(self, proto: TensorProto) -> Tensor:
        """The weight that an external-data entry of the graph refers to.

        Raises:
            EngineError: the entry names another file, or bytes that are not there.
        """
        entry = {item.key: item.value for item in proto.external_data}
        dtype, shape = dtype_of(proto.data_type), list(proto.dims)
        offset = int(entry.get("offset", 0))
        length = int(entry.get("length", self._size - offset))
        if entry.get("location") != self._path.name or not 0 <= offset <= offset + length <= (
            self._size
        ):
            raise EngineError(
                f"{self._path}: weight {proto.name!r} is expected at {entry}, outside this file of "
                f"{self._size:,} bytes; copy the shard again"
            )
        data = self._bytes[offset : offset + length]
        if offset % dtype.itemsize:  # torch cannot view elements that straddle their alignment
            data = data.clone()
        return data.view(dtype).view(shape)
