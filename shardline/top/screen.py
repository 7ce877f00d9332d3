"""The whole screen as lines, for a width, a height and what was chosen to be seen. Pure."""

import textwrap
from dataclasses import dataclass, replace

from rich.text import Text

from client.watch.bound import find_bound
from client.watch.finding import Bound, BoundKind
from client.watch.view import ClusterView
from contract.printable import printable
from shardline.top import counts, sections
from shardline.top.devices import ORDERS, rows, table
from shardline.top.drawing import DIM, GOOD, TITLE, WARN, cut, fit, plain
from shardline.top.stages import stages

FEWEST_EVENTS = 2
MIN_STAGE_ROWS = 3
KEYS = (
    ("q", "quit"),
    ("b", "what bounds it"),
    ("d", "more devices"),
    ("s", "sort"),
    ("?", "help"),
)
HELP = """\
b  what bounds throughput now, and what would help      q  quit
d  further devices, where there are more than fit       ?  this text
s  sort devices: by stage, the busiest, least memory, by name

stages   busy: share of the time in which its devices compute
         compute, wait: median of a batch; out/s: bytes sent on
         bubble: time of the last second with nothing to compute
devices  st: stage; q: batches received and not begun
         cpu: of one core; rss: memory of the process; free: what
         the machine has left; in/s, out/s: bytes of batches
         rec: connections made anew
         flags: volt, freq, slow, warm: its board holds it back
         now; in brackets: it did since the board started
         silent 12s: online, and not heard for so long
ledger   submitted = delivered + in flight + dead + lost
         lost must be 0

Dim figures are older than five seconds. Esc closes a text."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the reader has chosen to see: which page of the devices, in what order."""

    page: int = 0
    order: str = "stage"

    def next_page(self) -> "Choice":
        """The devices that follow; the first ones after the last."""
        return replace(self, page=self.page + 1)

    def next_order(self) -> "Choice":
        """The next way to sort, from the first page."""
        names = list(ORDERS)
        return Choice(order=names[(names.index(self.order) + 1) % len(names)])


def screen(
    view: ClusterView,
    broker: str,
    width: int,
    height: int,
    choice: Choice | None = None,
    trouble: str | None = None,
) -> list[Text]:
    """Exactly ``height`` lines of ``width`` cells.

    Args:
        view: what is known.
        broker: its address.
        width: at least 40 to be of use.
        height: what does not fit is left out from the bottom, but for the keys.
        choice: which devices, in what order.
        trouble: what else the reader has to know, such as why there is no connection.
    """
    choice = choice or Choice()
    banner = sections.banner(view, trouble)
    above = [sections.header(view, broker, width), *([banner] if banner is not None else [])]
    above += [sections.flow(view, width), *sections.throughput(view, width)]
    above.append(bound_line(find_bound(view), width))
    below = [*counts.ledger(view, width), *counts.broker(view, width)]
    found = sorted(rows(view), key=ORDERS[choice.order])
    num_stages = view.plan.num_stages if view.plan is not None else 0
    # Headings of stages and devices, the devices' page, and the keys take a line each.
    room = height - len(above) - len(below) - 4 - FEWEST_EVENTS
    stage_rows = min(num_stages, max(MIN_STAGE_ROWS, room // 3, room - len(found)))
    is_cut = num_stages > stage_rows
    device_rows = max(1, room - stage_rows - is_cut)
    pages = max(1, -(-len(found) // device_rows))
    page = choice.page % pages
    shown = found[page * device_rows : (page + 1) * device_rows]
    lines = [*above, *stages(view, stage_rows, width)]
    lines.append(_devices_line(len(found), page, pages, choice.order))
    lines += [*table(view, shown, width), *below]
    lines += counts.events(view, max(0, height - len(lines) - 1), width)
    lines = lines[: height - 1]
    lines += [Text()] * (height - 1 - len(lines))
    return [fit(line, width) for line in [*lines, _keys()]]


def bound_line(bound: Bound, width: int) -> Text:
    """What bounds the throughput, as far as it goes into a line."""
    style = GOOD if bound.kind is BoundKind.STAGE else WARN
    return Text.assemble(
        ("bound", TITLE), "  ", plain(cut(printable(bound.what), width - 7), style)
    )


def bound_text(bound: Bound, width: int) -> list[Text]:
    """The same in full, and what would help."""
    lines = [plain(line, TITLE) for line in wrapped(bound.what, width)]
    for remedy in bound.helps:
        first, *rest = wrapped(remedy, width - 2)
        lines += [plain(f"· {first}"), *(plain(f"  {line}") for line in rest)]
    return lines


def wrapped(text: str, width: int) -> list[str]:
    """``text`` on lines of ``width`` cells."""
    return textwrap.wrap(printable(text), max(20, width)) or [""]


def _devices_line(count: int, page: int, pages: int, order: str) -> Text:
    text = Text.assemble(("devices", TITLE), (f"  {count}, by {order}", DIM))
    if pages > 1:
        text.append(f", page {page + 1} of {pages} (d)", WARN)
    return text


def _keys() -> Text:
    text = Text(" ")
    for key, meaning in KEYS:
        text.append_text(Text.assemble((key, TITLE), (f" {meaning}   ", DIM)))
    return text
