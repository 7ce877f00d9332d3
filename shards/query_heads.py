"""How many query heads a shard's attention has: onnxruntime computes scores for each of them.

Read by the bytes of the attribute `num_heads` of GroupQueryAttention, since a stage has no onnx: in
a serialised graph the name of an attribute and its whole number lie side by side.
https://protobuf.dev/programming-guides/encoding/; AttributeProto: 1 is the name, 3 the number.
"""

import re
from pathlib import Path

_NUM_HEADS = re.compile(rb"\n\tnum_heads\x18([\x80-\xff]{0,2}[\x00-\x7f])")


def query_heads(graph: Path, at_least: int) -> int:
    """The most query heads of any attention in ``graph``; ``at_least`` where none can be seen.

    Raises:
        OSError: the file cannot be read.
    """
    numbers = (match[1] for match in _NUM_HEADS.finditer(graph.read_bytes()))
    return max(map(_varint, numbers), default=at_least)


def _varint(digits: bytes) -> int:
    return sum((digit & 0x7F) << 7 * index for index, digit in enumerate(digits))
