"""What a codec costs: processor time to compress and to expand, against the message itself.

One thread, interleaved: every round measures everything once, so that a disturbance meets all.
Processor time of this thread, not wall time. The yardstick is encode and decode of the same tensor
as float32, checksum included: what its message costs without any codec.
"""

import time
from collections.abc import Callable

import numpy as np

from bench.results import Recorder, names, parser
from bench.tables import figure, text
from contract.activation import BatchId, Header, decode, encode
from contract.codec import CODECS, compress, encoded_bytes, expand
from contract.tensor_spec import Tensors, TensorSpec

SHAPES = "1x96x14x14,1x24x56x56,1x256x56x56,8x24x56x56,8x2048x7x7"
HEADER = Header("0" * 16, BatchId(0, 0), 0, 0, 1, ("pi-0", "pi-1"), "bench", 0)
Row = dict[str, float | str]
COLUMNS = (
    text("tensor", "shape"),
    text("codec", "codec"),
    figure("size", "size", 3),
    figure("compress, ms a MB", "compress_ms_per_mb", 2),
    figure("expand", "expand_ms_per_mb", 2),
    figure("encode + decode", "message_ms_per_mb", 2),
    figure("against encode + decode", "ratio", 1),
)


def measure(shape: tuple[int, ...], rounds: int) -> list[Row]:
    """One row for each codec: ms for a MB of float32, medians of ``rounds``."""
    tensor = np.maximum(np.random.default_rng(0).standard_normal(shape), 0).astype(np.float32)
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", *shape[1:]))
    whole: Tensors = {"x": tensor}
    payload = encode(HEADER, whole)
    work: dict[str, Callable[[], object]] = {
        "encode": lambda: encode(HEADER, whole),
        "decode": lambda: decode(payload),
    }
    for codec in CODECS:
        if codec != "float32":
            sent = compress(codec, whole)
            work[f"compress {codec}"] = lambda codec=codec: compress(codec, whole)  # type: ignore[misc]
            work[f"expand {codec}"] = lambda codec=codec, sent=sent: expand(  # type: ignore[misc]
                codec, [spec], sent
            )
    times = _interleaved(work, rounds, repeat=max(1, 2_000_000 // tensor.nbytes))
    megabytes = tensor.nbytes / 1e6
    relay = times["encode"] + times["decode"]
    rows: list[Row] = []
    for codec in CODECS:
        compress_ms = times.get(f"compress {codec}", 0.0)
        expand_ms = times.get(f"expand {codec}", 0.0)
        rows.append(
            {
                "shape": "x".join(map(str, shape)),
                "codec": codec,
                "size": round(encoded_bytes(codec, [spec], shape[0]) / tensor.nbytes, 4),
                "compress_ms_per_mb": round(compress_ms / megabytes, 3),
                "expand_ms_per_mb": round(expand_ms / megabytes, 3),
                "message_ms_per_mb": round(relay / megabytes, 3),
                "ratio": round((compress_ms + expand_ms) / relay, 2),
            }
        )
    return rows


def _interleaved(
    work: dict[str, Callable[[], object]], rounds: int, repeat: int
) -> dict[str, float]:
    """Median ms of one call of each, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 2):
        for name, call in work.items():
            start = time.thread_time()
            for _ in range(repeat):
                call()
            if number >= 2:  # the first two warm up
                taken[name].append((time.thread_time() - start) * 1e3 / repeat)
    return {name: float(np.median(values)) for name, values in taken.items()}


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, rounds=15)
    options.add_argument(
        "--shapes", type=names, default=names(SHAPES), help="such as 1x256x56x56, comma-separated"
    )
    chosen = options.parse_args()
    recorder = Recorder("codecs", COLUMNS, chosen.json)
    for shape in chosen.shapes:
        for row in measure(tuple(map(int, shape.split("x"))), chosen.rounds):
            recorder.add(row)
    recorder.finish()


if __name__ == "__main__":
    main()
