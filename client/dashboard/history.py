"""The last three minutes of the charts, one sample a second. Pure but for what is handed in.

Sampled here by one clock, not taken from the metrics' own times: the clocks of devices differ.
"""

from collections import deque
from collections.abc import Mapping

from client.dashboard.messages import DeviceMessage, History, Sample

SAMPLES_KEPT = 180


class Samples:
    """A ring of samples. Not thread-safe."""

    def __init__(self) -> None:
        self._ring: deque[tuple[Sample, Mapping[str, float | None]]] = deque(maxlen=SAMPLES_KEPT)

    def add(
        self, sample: Sample, devices: tuple[DeviceMessage, ...], *, is_connected: bool
    ) -> None:
        """Keep one second: its sample, and how busy each device was in it."""
        busy = {
            device.device: device.metrics.utilisation if device.metrics else None
            for device in devices
            if device.is_fresh and is_connected
        }
        self._ring.append((sample, busy))

    def history(self, devices: tuple[DeviceMessage, ...]) -> History:
        """All of it, with the columns of these devices."""
        samples = [sample for sample, _ in self._ring]
        return History(
            time_unix_s=tuple(s.time_unix_s for s in samples),
            images_per_s=tuple(s.images_per_s for s in samples),
            tokens_per_s=tuple(s.tokens_per_s for s in samples),
            first_token_ms=tuple(s.first_token_ms for s in samples),
            latency_ms_p50=tuple(s.latency_ms_p50 for s in samples),
            latency_ms_p95=tuple(s.latency_ms_p95 for s in samples),
            latency_ms_p99=tuple(s.latency_ms_p99 for s in samples),
            bytes_in_per_s=tuple(s.bytes_in_per_s for s in samples),
            bytes_out_per_s=tuple(s.bytes_out_per_s for s in samples),
            utilisation={
                d.device: tuple(busy.get(d.device) for _, busy in self._ring) for d in devices
            },
        )
