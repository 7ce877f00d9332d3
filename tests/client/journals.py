"""A journal in a test's hands: batches go in, results come back, without a broker."""

import sqlite3
from pathlib import Path

import numpy as np

from client.batch import Batch, DeathReason
from client.journal import Journal
from client.ledger import Entry, Ledger
from contract.activation import BatchId, Header, encode
from contract.plan import Plan
from tests.tiny import CLASSES, HEIGHT, WIDTH

ROUTE = ("pi-0", "pi-1", "pi-2")


def batch(number: int, images: int = 2, **more: object) -> Batch:
    pixels = np.full((images, 1, HEIGHT, WIDTH), number % 256, np.uint8)
    return Batch({"image": pixels}, tuple(f"{number}/{i}" for i in range(images)), **more)  # type: ignore[arg-type]


def result_message(batch_id: BatchId, plan: Plan, score: float = 0.0, images: int = 2) -> bytes:
    header = Header(
        plan_id=plan.plan_id,
        batch_id=batch_id,
        attempt=0,
        low=0,
        stage_index=plan.num_stages,
        route=ROUTE,
        client="me",
        sent_us=1,
    )
    return encode(header, {"logits": np.full((images, CLASSES), score, np.float32)})


class Written:
    """A journal and its ledger, as one start of a client uses them."""

    def __init__(self, path: Path, plan: Plan, keep_input: bool = True) -> None:
        self.journal = Journal(path)
        self.journal.take_plan(plan)
        self.plan, self.keep_input = plan, keep_input
        self.ledger: Ledger = self.journal.begin(0.0)

    def send(self, *numbers: int, **more: object) -> list[Entry]:
        """Submit and send these batches; each number is seen in its pixels and names."""
        entries = []
        for number in numbers:
            entry = self.ledger.submit(batch(number, **more), 0.0)
            self.attempt(entry)
            entries.append(entry)
        return entries

    def attempt(self, entry: Entry) -> None:
        self.ledger.sent(entry, ROUTE, 30.0)
        header = Header(
            plan_id=self.plan.plan_id,
            batch_id=entry.batch_id,
            attempt=entry.attempt,
            low=0,
            stage_index=0,
            route=ROUTE,
            client="me",
            sent_us=1,
        )
        message = encode(header, entry.batch.tensors)
        self.journal.sent(entry, message, keep_input=self.keep_input)

    def done(self, entry: Entry, score: float = 0.0) -> None:
        assert self.ledger.deliver(entry.batch_id) is entry
        message = result_message(entry.batch_id, self.plan, score, entry.batch.images)
        self.journal.done(entry, message, 12.5)

    def dead(self, entry: Entry, detail: str = "as the test wants it") -> None:
        self.ledger.kill(entry, DeathReason.POISON)
        self.journal.dead(entry, DeathReason.POISON, detail)

    def close(self) -> None:
        """As the death of the process: nothing more is committed."""
        self.journal.close()


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    database = sqlite3.connect(path)
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()
