"""Tokens a second: a language model in two stages over MQTT, whole in one process, in transformers.

    python -m bench.llm [--shape gpt2-124m] [--contexts 64,900] [--tokens 48] [--rounds 5]

Random weights of GPT-2's shape, greedy, one thread a process. Stage k is pinned to processor k,
every process that decodes alone to the first; broker and client share both. All go on behind the
same prompts, whose own computing is not counted, and write the same tokens, which is looked at:
every row in every turn. The sides take turns; each ratio is taken within one round. Four sequences
go through the pipeline as one batch, as two batches of two rows and as four of one; the process
that they are held against decodes the four as one batch. What two batches could reach at best on
this machine is measured, too: both stages at once, two rows each, each with its processor and
nothing between them but the memory that they share.

What a hop costs is what a token takes beside the stages' own computing (by the traces), divided by
the hops: as many as stages, since the last one's token goes back to the first. That computing has a
row of its own: a pipeline whose hops cost nothing would be as fast.
"""

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench.llm_models import SEQUENCES, SHAPES, TextPlans, prepare_text, prompt_ids
from bench.llm_passes import decode
from bench.llm_texts import Rows, Texts, others
from bench.llm_workers import Decoded, TextWorker
from bench.pinned_pipeline import PinnedPipeline
from bench.processes import confine_to_two_cpus
from bench.results import PLANS, Recorder, numbers, parser
from bench.rounds import Spread, ratio_spread, spread, take_turns
from bench.tables import Row, figures, ratio, text
from client.generation.pipeline import TokenPipeline
from client.settings import ClientSettings
from contract.plan import Plan

WARM_UP_TOKENS = 4
ONE, FOUR = "one process", "one process, 4 as a batch"
INT4, INT4_FOUR = "one process, int4", "one process, int4, 4 as a batch"
TRANSFORMERS, PIPELINE = "transformers", "2 stages"
WORKERS = (ONE, FOUR, INT4, INT4_FOUR, TRANSFORMERS)
PAIRS, SINGLES = "2 stages, 2 batches of 2", "2 stages, 4 batches of 1"
TOGETHER = "2 stages, 1 batch of 4"
INT4_PAIRS = "2 stages, int4, 2 batches of 2"
INT4_SIDES = (INT4, INT4_FOUR, INT4_PAIRS)
COMPUTING = "2 stages, their computing alone"
LIMIT = "both stages at once, nothing between"
BEST = ">= 1.5, the best one"
COMPARISONS = (
    (PIPELINE, ONE, ">= 0.9"),
    (COMPUTING, ONE, None),
    (TOGETHER, FOUR, BEST),
    (PAIRS, FOUR, BEST),
    (SINGLES, FOUR, BEST),
    (LIMIT, FOUR, None),
    (INT4_PAIRS, INT4_FOUR, None),
    (INT4, ONE, ">= 2"),
    (ONE, TRANSFORMERS, None),
)
COLUMNS = (
    text("what", "what"),
    text("against", "against"),
    ratio("speed", "speed"),
    figures("ms a token: this, the other", "ms", 2),
    ratio("ms a hop", "hop_ms"),
    text("aim", "aim"),
)


class Sides:
    """All that is measured, each as a function that returns milliseconds for a token."""

    def __init__(self, plans: TextPlans, tokens: int, cpus: tuple[int, int]) -> None:
        self._plans, self._tokens, self._cpus = plans, tokens, cpus
        self._stack = ExitStack()
        self.texts: Texts = {}
        self.computing_ms: list[float] = []
        self.hops_ms: list[float] = []

    def __enter__(self) -> "Sides":
        try:
            plans, alone = self._plans, self._cpus[0]
            self._pipelines = {
                plan.name: self._open(plan) for plan in (plans.pipeline, plans.pipeline_int4)
            }
            whole, int4 = plans.folder / plans.whole.name, plans.folder / plans.whole_int4.name
            commands = {
                ONE: ("shard", whole, 1),
                FOUR: ("shard", whole, SEQUENCES),
                INT4: ("shard", int4, 1),
                INT4_FOUR: ("shard", int4, SEQUENCES),
                TRANSFORMERS: ("transformers", plans.model, 1),
            }
            self._workers = {
                name: self._stack.enter_context(TextWorker(*command, alone))
                for name, command in commands.items()
            }
            in_two = plans.folder / plans.pipeline.name
            self._stages = [
                self._stack.enter_context(
                    TextWorker(f"stage-{index}", in_two, SEQUENCES // 2, self._cpus[index])
                )
                for index in range(2)
            ]
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def _open(self, plan: Plan) -> TokenPipeline:
        """Its stages with a broker of their own, and a client."""
        site = self._stack.enter_context(PinnedPipeline(plan, self._plans.folder, self._cpus))
        pipeline = TokenPipeline(ClientSettings("bench"), site.connect)
        self._stack.enter_context(pipeline)
        pipeline.open()
        return pipeline

    def worker(self, name: str, context: int) -> Callable[[], float]:
        """One of the processes that decode alone."""

        def measure() -> float:
            worker = self._workers[name]
            worker.decode(context, WARM_UP_TOKENS)  # where it was elsewhere, its prompt anew
            done: Decoded = worker.decode(context, self._tokens)
            self._wrote(name, context, done.tokens)
            return done.ms_per_token

        return measure

    def both_at_once(self, context: int) -> Callable[[], float]:
        """Each stage with half of the sequences: a token of a batch takes as long as the slower."""

        def measure() -> float:
            for tokens in (WARM_UP_TOKENS, self._tokens):
                for stage in self._stages:
                    stage.begin(context, tokens)
                done = [stage.finish() for stage in self._stages]
            return max(one.ms_per_token for one in done)

        return measure

    def _wrote(self, name: str, context: int, rows: Rows) -> None:
        self.texts.setdefault((name, context), []).append(rows)

    def pipeline(
        self, name: str, batches: int, rows: int, context: int, plan: Plan | None = None
    ) -> Callable[[], float]:
        """A pipeline, of float32 unless told, with so many batches of so many sequences."""
        running = self._pipelines[(plan or self._plans.pipeline).name]
        ids = prompt_ids(batches * rows, context, self._plans.vocabulary)
        prompts = [ids[at : at + rows] for at in range(0, len(ids), rows)]

        def measure() -> float:
            done = decode(running, prompts, self._tokens)
            self._wrote(name, context, done.tokens)
            if len(ids) == 1:
                beside = done.ms_per_token - done.compute_ms
                self.computing_ms.append(done.compute_ms)
                self.hops_ms.append(beside / self._plans.pipeline.num_stages)
            return done.ms_per_token

        return measure


def measure(plans: TextPlans, contexts: Sequence[int], tokens: int, rounds: int) -> "Found":
    """Run all sides in turns.

    Args:
        plans: of the model.
        contexts: the short one, at which all are compared, and the long one.
        tokens: that are counted in a round.
        rounds: how many.

    Raises:
        RuntimeError: a batch was given up.
    """
    short, long = contexts
    cpus = confine_to_two_cpus()
    with Sides(plans, tokens, cpus) as sides:
        calls = {
            **{name: sides.worker(name, short) for name in WORKERS},
            PIPELINE: sides.pipeline(PIPELINE, 1, 1, short),
            TOGETHER: sides.pipeline(TOGETHER, 1, 4, short),
            PAIRS: sides.pipeline(PAIRS, 2, 2, short),
            SINGLES: sides.pipeline(SINGLES, 4, 1, short),
            LIMIT: sides.both_at_once(short),
            INT4_PAIRS: sides.pipeline(INT4_PAIRS, 2, 2, short, plans.pipeline_int4),
        }
        for warm_up in calls.values():
            warm_up()
        sides.computing_ms.clear()
        sides.hops_ms.clear()
        found = take_turns(calls, rounds)
        found[COMPUTING] = [*sides.computing_ms]
        hops = [*sides.hops_ms]
        both = {
            (PIPELINE, short): calls[PIPELINE],
            (PIPELINE, long): sides.pipeline(PIPELINE, 1, 1, long),
            (ONE, short): calls[ONE],
            (ONE, long): sides.worker(ONE, long),
        }
        at_both = take_turns({f"{name}, {at}": call for (name, at), call in both.items()}, rounds)
        return Found(found, at_both, hops, sides.texts)


class Found(NamedTuple):
    """Milliseconds for a token by side and round: at the short context, and at both; what a hop
    cost; the texts of each side."""

    short: dict[str, list[float]]
    both: dict[str, list[float]]
    hops_ms: list[float]
    texts: Texts


def rows_of(found: Found, contexts: Sequence[int]) -> list[Row]:
    """The table. Pure."""
    rows: list[Row] = [
        {
            "what": this,
            "against": other,
            "speed": ratio_spread(found.short[other], found.short[this]),
            "ms": [_median(found.short[this]), _median(found.short[other])],
            "aim": aim,
        }
        for this, other, aim in COMPARISONS
    ]
    short, long = contexts
    for name in (PIPELINE, ONE):
        far, near = found.both[f"{name}, {long}"], found.both[f"{name}, {short}"]
        rows.append(
            {
                "what": f"{name}, behind {long} tokens",
                "against": f"behind {short}",
                "speed": ratio_spread(near, far),
                "ms": [_median(far), _median(near)],
                "aim": "as one process's" if name == PIPELINE else None,
            }
        )
    hop: Spread = spread(found.hops_ms)
    return [*rows, {"what": "a hop, beside computing", "hop_ms": hop, "aim": "< 1 ms"}]


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3)


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, rounds=5)
    options.add_argument("--shape", choices=SHAPES, default="gpt2-124m")
    options.add_argument("--contexts", type=numbers, default=[64, 900], help="SHORT,LONG")
    options.add_argument("--tokens", type=int, default=48, help="of a side in a round")
    options.add_argument("--plans", type=Path, default=PLANS)
    chosen = options.parse_args()
    recorder = Recorder("llm", COLUMNS, chosen.json)
    found = measure(
        prepare_text(chosen.shape, chosen.plans), chosen.contexts, chosen.tokens, chosen.rounds
    )
    for row in rows_of(found, chosen.contexts):
        recorder.add(row)
    int4 = {key: turns for key, turns in found.texts.items() if key[0] in INT4_SIDES}
    unlike = others(found.texts, ONE, FOUR, left_out=INT4_SIDES) + others(int4, INT4, INT4_FOUR)
    for text_ in unlike:
        recorder.note(f"Another text than one process's: {text_} (random weights have near ties).")
    recorder.finish()


if __name__ == "__main__":
    main()
