"""Which batch a device's death is held against: the one that it had in hand. Pure.

A device computes its inputs in order, so of the attempts that are under way through it the oldest
one is the suspect. Judged is when the device has started again, or another has died: by then the
answers that were already on their way have come, and whoever they answer is no suspect. A device
that comes back as the same start was not dead, only away.
"""

from collections.abc import Sequence

from client.ledger import Entry, Ledger
from client.router import AttemptKey

Death = tuple[str, int]
"""A start of a device that has ended: its name and its boot number."""


class Deaths:
    """The deaths that are not judged yet: at most one for each device."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._pending: dict[Death, tuple[AttemptKey, ...]] = {}

    def lost(self, death: Death, in_hand: Sequence[AttemptKey]) -> list[Entry]:
        """Note a death and what was under way through that device, oldest first.

        Returns:
            The batches that the deaths before it are held against.
        """
        accused = self._judge(list(self._pending))
        self._pending[death] = tuple(in_hand)
        return accused

    def back(self, device: str, boot: int) -> list[Entry]:
        """A device is there; the batch that its death is held against, if it has died."""
        self._pending.pop((device, boot), None)
        return self._judge([death for death in self._pending if death[0] == device])

    def _judge(self, deaths: Sequence[Death]) -> list[Entry]:
        accused = []
        for death in deaths:
            in_hand = self._pending.pop(death)
            found = (self._ledger.find(batch_id) for batch_id, _attempt in in_hand)
            entry = next((entry for entry in found if entry is not None), None)
            if entry is not None:
                entry.deaths += 1
                accused.append(entry)
        return accused
