"""A fleet's profile as a table for people."""

from rich.markup import escape
from rich.table import Table

from contract.profile import DeviceProfile, FleetProfile
from shardline.console import size
from shardline.plan_table import new_table


def profile_table(profile: FleetProfile) -> Table:
    """One row for each device and batch size; the device's own figures stand in its first."""
    table = new_table(f"{profile.model}  ·  {profile.num_segments} segments, measured by devices")
    for column in ("device", "kind"):
        table.add_column(column, overflow="fold")
    for column in ("batch", "ms/batch", "images/s", "memory", "up/s", "down/s", "latency", "lasts"):
        table.add_column(column, justify="right")
    for device in profile.devices:
        own = _own_figures(device)
        for index, timings in enumerate(device.timings):
            table.add_row(
                *((escape(device.device), escape(device.kind)) if index == 0 else ("", "")),
                str(timings.batch_size),
                f"{timings.whole_ms:,.2f}",
                f"{timings.images_per_s:,.1f}",
                *(own if index == 0 else [""] * len(own)),
            )
    return table


def _own_figures(device: DeviceProfile) -> list[str]:
    """Memory, link and endurance; what was not measured is a dash."""
    latency, lasts = device.link_latency_ms, device.sustained_share
    return [
        size(device.memory_available_bytes),
        *(
            "—" if rate is None else size(rate)
            for rate in (device.link_up_bytes_per_s, device.link_down_bytes_per_s)
        ),
        "—" if latency is None else f"{latency:.2f} ms",
        "—" if lasts is None else f"{lasts:.0%}",
    ]


def broker_line(profile: FleetProfile) -> str:
    """What the broker carried, and which devices were not idle, in a sentence or two."""
    rate = profile.broker_bytes_per_s
    if rate is None:
        told = "what the broker carries is not known"
    else:
        limit = "its limit" if profile.broker_saturated else "limited by the devices' own links"
        told = f"through the broker at once: {size(rate)}/s each way, {limit}"
    busy = [device.device for device in profile.devices if device.busy]
    return told + (f"; held a shard meanwhile: {', '.join(busy)}" if busy else "")
