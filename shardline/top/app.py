"""The live view: textual draws what `screen.py` decides, once a second and at every key."""

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.events import Resize
from textual.screen import ModalScreen
from textual.widgets import Static

from client.watch.bound import find_bound
from client.watch.view import ClusterView
from contract.errors import BrokerError
from shardline.top.screen import HELP, Choice, bound_text, screen
from shardline.top.trouble import Trouble

EVERY_S = 1.0
MARGIN = 6
"""Cells that a text's border and padding take."""

Watch = Callable[[], ClusterView]


class TextScreen(ModalScreen[None]):
    """A text above the live view, until a key closes it."""

    CSS = """
    TextScreen { align: center middle; background: transparent; }
    TextScreen > VerticalScroll {
        width: 100%; height: auto; max-height: 100%;
        border: round ansi_cyan; padding: 0 1; background: ansi_default;
    }
    TextScreen Static { height: auto; background: ansi_default; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,b,question_mark,enter,space", "dismiss", "close", show=False),
        Binding("q,ctrl+c", "app.quit", "quit", show=False, priority=True),
    ]

    def __init__(self, title: str, text: Callable[[int], list[Text]]) -> None:
        """``text``: what to show at a width in cells; asked again at every refresh."""
        super().__init__()
        self._heading, self._make_text = title, text

    def compose(self) -> ComposeResult:
        """See textual."""
        box = VerticalScroll(Static(id="text"))
        box.border_title = Text(self._heading)
        yield box

    def on_mount(self) -> None:
        """See textual."""
        self.refresh_text()

    def on_resize(self, _event: Resize) -> None:
        """See textual."""
        self.refresh_text()

    def refresh_text(self) -> None:
        """Show the text as it is now."""
        width = max(20, min(100, self.app.size.width - MARGIN))
        self.query_one("#text", Static).update(Text("\n").join(self._make_text(width)))


class TopApp(App[None]):
    """`shardline top`. Returns when the reader ends it; :attr:`failure` says if the broker did."""

    CSS = """
    Screen { background: ansi_default; color: ansi_default; overflow: hidden; }
    #body { width: 100%; height: 100%; background: ansi_default; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", "quit", show=False, priority=True),
        Binding("b", "explain", "what bounds it", show=False),
        Binding("d", "devices", "more devices", show=False),
        Binding("s", "sort", "sort", show=False),
        Binding("question_mark", "help", "help", show=False),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, watch: Watch, broker: str) -> None:
        """Show what ``watch`` sees, of the broker at the address ``broker``."""
        super().__init__(ansi_color=True)
        self.failure: BrokerError | None = None
        self._see, self._broker = watch, broker
        self._choice = Choice()
        self._trouble = Trouble()
        self._view: ClusterView | None = None

    def compose(self) -> ComposeResult:
        """See textual."""
        yield Static(id="body")

    def on_mount(self) -> None:
        """See textual."""
        logging.getLogger().addHandler(self._trouble)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.exit)
        self.look()
        self.set_interval(EVERY_S, self.look)

    def on_unmount(self) -> None:
        """See textual."""
        logging.getLogger().removeHandler(self._trouble)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)

    def on_resize(self, _event: Resize) -> None:
        """See textual."""
        self.draw()

    def look(self) -> None:
        """Show what is known now."""
        try:
            self._view = self._see()
        except BrokerError as error:
            self.failure = error
            self.exit()
            return
        self.draw()

    def draw(self) -> None:
        """Draw the last view at the size that the terminal has now."""
        if self._view is None:
            return
        width, height = self.size
        lines = screen(
            self._view, self._broker, width, height, self._choice, self._trouble.latest()
        )
        self.screen_stack[0].query_one("#body", Static).update(Text("\n", no_wrap=True).join(lines))
        if isinstance(self.screen, TextScreen):
            self.screen.refresh_text()

    def action_explain(self) -> None:
        """Say what bounds the throughput now, and what would help."""

        def text(width: int) -> list[Text]:
            return [] if self._view is None else bound_text(find_bound(self._view), width)

        self.push_screen(TextScreen("what bounds throughput now", text))

    def action_help(self) -> None:
        """Explain keys and columns."""
        self.push_screen(
            TextScreen("help", lambda _width: [Text(line) for line in HELP.splitlines()])
        )

    def action_devices(self) -> None:
        """Show further devices."""
        self._choice = self._choice.next_page()
        self.draw()

    def action_sort(self) -> None:
        """Sort the devices another way."""
        self._choice = self._choice.next_order()
        self.draw()
