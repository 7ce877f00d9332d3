"""Draws the payload curve from the results of bench.payload: an SVG. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.payload_ends import KINDS
from bench.tables import show_bytes

COLOURS = {"ours": "#0b7285", "bare": "#868e96"}
LABELS = {"ours": "Shardline's connection", "bare": "bare paho"}
STYLES = {"plain": "-", "TLS": "--"}
PANELS = (
    ("p50_ms", "one way, median (ms)"),
    ("mb_per_s", "eight on their way (MB/s)"),
    ("broker_cpu_s_per_gb", "broker, CPU seconds a GB"),
    ("client_cpu_s_per_gb", "sender and receiver, CPU seconds a GB"),
)


def lines(
    rows: Sequence[dict[str, Any]], key: str, qos: int = 1
) -> dict[tuple[str, str], tuple[list[int], list[float]]]:
    """Sizes and figures of each line, by security and kind. Pure."""
    found: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
    for row in sorted(rows, key=lambda row: int(row["size_bytes"])):
        if row["qos"] == qos:
            for kind in KINDS:
                xs, ys = found.setdefault((row["security"], kind), ([], []))
                xs.append(row["size_bytes"])
                ys.append(row[kind][key])
    return found


def draw(rows: Sequence[dict[str, Any]], caption: str, path: Path) -> None:
    """Four panels over the size of the payload, at QoS 1, both axes logarithmic.

    The same rows give the same bytes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "shardline"
    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for (security, kind), (xs, ys) in lines(rows, key).items():
            label = f"{LABELS[kind]}, {security}"
            axes.plot(xs, ys, STYLES[security], color=COLOURS[kind], marker="o", ms=3, label=label)
        sizes = sorted({row["size_bytes"] for row in rows})
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(sizes, [show_bytes(size) for size in sizes], fontsize=8)
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _position: f"{value:g}")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.suptitle("A message through Mosquitto at QoS 1, by size of its payload", fontsize=11)
    figure.supxlabel(caption, fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
