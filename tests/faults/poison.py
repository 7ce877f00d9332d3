"""Row 23: a batch that ends every process that computes it."""

from collections.abc import Iterator

from client.batch import Batch
from tests.faults.feed import Feed
from tests.faults.known_answers import numbered_batches, poisonous_batch
from tests.faults.pipeline_under_test import Setup, Site
from tests.faults.row import Figures, Row, Trial

WAYS = ("exit", "segv", "kill")
DEATHS_EACH = 3


def poisonous(site: Site, trial: Trial) -> Figures:
    """One batch, or two, among the others: exit, SIGSEGV or SIGKILL, as of the kernel's."""
    site.triggers.set("poison", WAYS[trial.seed % len(WAYS)])
    places = set(trial.random.sample(range(5, 40), 1 + trial.seed % 2))

    def batches() -> Iterator[Batch]:
        for number, batch in enumerate(numbered_batches(trial.seed)):
            if number in places:
                feed.struck()
                yield poisonous_batch(number)
            yield batch

    before = site.supervisor.restarts
    feed = Feed(
        site,
        trial,
        lambda: None,
        batches=batches(),
        begin_at_once=True,
        may_die=lambda batch: batch.names[0].startswith("poison"),
    )
    figures = feed.run()
    deaths = site.supervisor.restarts - before
    figures.require(figures.dead == len(places), f"{figures.dead} of {len(places)} died")
    figures.require(deaths <= DEATHS_EACH * len(places), f"it ended {deaths} processes")
    figures.note = f"{deaths} deaths"
    return figures


ROWS = (
    Row(
        23,
        "a batch ends every process that computes it",
        "the launcher ends the process at a certain image: exit, SIGSEGV or SIGKILL",
        "each device writes down what it computes and refuses what it died of; the client gives up",
        "nothing is written down, nothing given up: the stage dies for ever, nothing comes",
        lambda is_control: Setup(
            stage_patches={"pi-0": ("poison", *(("no_crash_marker",) if is_control else ()))},
            client_patches=("no_giving_up",) if is_control else (),
            patience_s=8.0 if is_control else 30.0,
        ),
        poisonous,
        seconds=6.0,
    ),
)
