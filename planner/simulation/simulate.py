"""Plays a plan batch by batch: what the client, the links, the broker and the devices would do.

The cost model says what a plan can reach at best; this says what it does with a window of so many
batches in flight. The events of one batch, in order, each server taking one thing at a time in the
order of arrival:

1. The client has room in its window, chooses the route (`routing.py`), and its processor sends.
2. The message crosses its link, then the broker, which passes on what it has all of.
3. The broker holds it until the device has acknowledged enough: it has at most
   ``problem.window_batches`` unacknowledged ones (the stage's receive maximum).
4. It crosses the device's link; the processor receives, computes and sends; it crosses the link up.
5. The broker has the output: it acknowledges it to the device, which then acknowledges its input.
   Acknowledgements take latency and no time on the wire.
6. After the last stage the same way to the client, whose processor receives.

A language model's batch is a step of its sequences: where the problem says how many are in flight,
each goes from the last stage by the broker to the first again, and the client hears of it beside.

Left out: retries, lost devices, and whatever else happens on a device.
"""

import math
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import simpy

from planner.cost_model import receive_ms, send_ms
from planner.problem import Problem, StageChoice
from planner.simulation.fifo import Load, Server
from planner.simulation.routing import costs_on, next_device, speeds

SPAN_IN_WINDOWS = 8
"""The newest batch stays within so many windows of the oldest open one: `client/pipeline.py`."""
WARM_UP_SHARE = 0.2
MIN_WINDOWS = 10
"""So many windows are run at least: what is dropped as warm-up is then two of them."""

Events = Generator[simpy.Event, object, None]


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """One device. ``share`` of its stage's batches; ``longest_held`` waited at the broker."""

    share: float
    processor: Load
    up: Load
    down: Load
    longest_held: int


@dataclass(frozen=True, slots=True)
class Simulation:
    """What was seen after the warm-up. Latencies in ms, from submitted to received."""

    window: int
    batches: int
    batches_per_s: float
    latency_ms_p50: float
    latency_ms_p95: float
    latency_ms_p99: float
    devices: Mapping[str, DeviceLoad]
    broker: Load
    client: Load
    client_up: Load
    client_down: Load


def simulate(
    problem: Problem,
    stages: Sequence[StageChoice],
    window: int,
    batches: int = 400,
    weights: Mapping[str, float] | None = None,
    jitter: float = 0.0,
    seed: int = 0,
) -> Simulation:
    """Run batches through a plan until so many results have come; the same answer for a seed.

    Args:
        problem: what everything costs.
        stages: who serves which segments.
        window: batches in flight at most; no more than the problem's own bound are.
        batches: results to wait for; more where they are fewer than ten windows.
        weights: speed of every device, for the client's choice; None for those that
            :func:`planner.predict.replicas` writes into a plan.
        jitter: coefficient of variation of the computing times; their mean stays.
        seed: of the jitter.

    Raises:
        PartitionError: a stage does not fit one of its devices.
    """
    if window < 1 or batches < 1 or jitter < 0:
        raise ValueError(f"window {window}, batches {batches}, jitter {jitter}: out of range")
    window = problem.possible_window(window)
    return _Run(problem, stages, window, batches, weights, jitter, seed).run()


class _Station:
    """A device with a stage."""

    def __init__(
        self,
        env: simpy.Environment,
        now_ms: Callable[[], float],
        problem: Problem,
        stage: StageChoice,
        name: str,
    ) -> None:
        costs, link = costs_on(problem, stage)[name], problem.device(name).link
        self.compute_ms, self.relay_ms = costs.compute_ms, costs.relay_ms
        self.down_ms, self.up_ms, self.latency_ms = costs.down_ms, costs.up_ms, link.latency_ms
        self.processor, self.up, self.down = Server(now_ms), Server(now_ms), Server(now_ms)
        self.slots = simpy.Resource(env, capacity=max(1, problem.window_batches))
        self.batches = self.batches_before = self.longest_held = 0

    @property
    def servers(self) -> tuple[Server, Server, Server]:
        return self.processor, self.up, self.down

    def mark(self) -> None:
        self.batches_before, self.longest_held = self.batches, 0


class _Run:
    def __init__(
        self,
        problem: Problem,
        stages: Sequence[StageChoice],
        window: int,
        batches: int,
        weights: Mapping[str, float] | None,
        jitter: float,
        seed: int,
    ) -> None:
        self._problem, self._stages, self._window = problem, stages, window
        self._batches = max(batches, MIN_WINDOWS * window)
        self._warm_up = max(1, int(WARM_UP_SHARE * self._batches))
        self._random = random.Random(seed)
        self._sigma = math.sqrt(math.log1p(jitter**2))
        self._env = env = simpy.Environment()
        self._stations = [
            {name: _Station(env, self._now_ms, problem, stage, name) for name in stage.devices}
            for stage in stages
        ]
        self._speeds = [
            speeds(problem, stage)
            if weights is None
            else {name: weights[name] for name in stage.devices}
            for stage in stages
        ]
        edges = [stage.first for stage in stages] + [problem.num_segments]
        self._broker_ms = [problem.broker.edge_ms(problem.edge_bytes[edge]) for edge in edges]
        self._broker = Server(self._now_ms)
        self._client, self._client_up, self._client_down = (Server(self._now_ms) for _ in range(3))
        self._outstanding: Counter[str] = Counter()
        self._open: OrderedDict[int, float] = OrderedDict()
        self._submitted = 0
        self._ended_at: list[float] = []
        self._latencies: list[float] = []
        self._done = env.event()

    def _now_ms(self) -> float:
        return self._env.now

    def run(self) -> Simulation:
        self._fill_the_window()
        self._env.run(until=self._done)
        return self._what_was_seen()

    # The client

    def _fill_the_window(self) -> None:
        while len(self._open) < self._window and self._span() < SPAN_IN_WINDOWS * self._window:
            route = [next_device(self._outstanding, each) for each in self._speeds]
            self._outstanding.update(route)
            self._open[self._submitted] = self._env.now
            self._env.process(self._batch(self._submitted, route))
            self._submitted += 1

    def _span(self) -> int:
        return self._submitted - next(iter(self._open), self._submitted)

    def _end(self, number: int, route: Sequence[str]) -> None:
        now = self._env.now
        self._outstanding.subtract(route)
        self._ended_at.append(now)
        self._latencies.append(now - self._open.pop(number))
        if len(self._ended_at) == self._warm_up:
            for server in self._servers():
                server.mark()
            for station in self._all_stations().values():
                station.mark()
        if len(self._ended_at) == self._batches:
            self._done.succeed()
        else:
            self._fill_the_window()

    # One batch

    def _batch(self, number: int, route: Sequence[str]) -> Events:
        problem, wait = self._problem, self._env.timeout
        link = problem.client.link
        first, last = 0, problem.num_segments
        comes_again = problem.batches_in_flight is not None
        if not comes_again:
            sending_ms = send_ms(problem.work_bytes(first), problem.client.relay)
            yield wait(self._client.take(sending_ms))
            yield wait(
                self._client_up.take(link.up_ms(problem.edge_bytes[first])) + link.latency_ms
            )
        acknowledge: Callable[[], None] | None = None
        for station, broker_ms in zip(self._on(route), self._broker_ms, strict=False):
            yield wait(self._broker.take(broker_ms))
            if acknowledge is not None:
                acknowledge()
            slot = station.slots.request()
            station.longest_held = max(station.longest_held, len(station.slots.queue))
            yield slot
            yield wait(station.down.take(station.down_ms) + station.latency_ms)
            yield wait(station.processor.take(self._processor_ms(station)))
            station.batches += 1
            yield wait(station.up.take(station.up_ms) + station.latency_ms)
            acknowledge = partial(self._acknowledge, station, slot)
        yield wait(self._broker.take(self._broker_ms[-1]))
        if acknowledge is not None:
            acknowledge()
        down_ms = link.down_ms(problem.edge_bytes[last])
        receiving_ms = receive_ms(problem.work_bytes(last), problem.client.relay)
        if comes_again:
            self._client_down.take(down_ms)
            self._client.take(receiving_ms)
        else:
            yield wait(self._client_down.take(down_ms) + link.latency_ms)
            yield wait(self._client.take(receiving_ms))
        self._end(number, route)

    def _on(self, route: Sequence[str]) -> list[_Station]:
        return [stage[name] for stage, name in zip(self._stations, route, strict=True)]

    def _acknowledge(self, station: _Station, slot: simpy.resources.resource.Request) -> None:
        """The broker says that it has the output, the device that its input is done with."""

        def release(_event: simpy.Event) -> None:
            station.slots.release(slot)

        there_and_back = self._env.timeout(2 * station.latency_ms)
        there_and_back.callbacks.append(release)

    def _processor_ms(self, station: _Station) -> float:
        """One thread receives, computes and sends a batch, one after another."""
        noise = self._random.lognormvariate(-(self._sigma**2) / 2, self._sigma)
        return station.relay_ms + station.compute_ms * noise

    # What came of it

    def _all_stations(self) -> dict[str, _Station]:
        return {name: station for stage in self._stations for name, station in stage.items()}

    def _servers(self) -> list[Server]:
        devices = [server for each in self._all_stations().values() for server in each.servers]
        return [self._broker, self._client, self._client_up, self._client_down, *devices]

    def _what_was_seen(self) -> Simulation:
        elapsed_ms = max(self._ended_at[-1] - self._ended_at[self._warm_up - 1], 1e-9)
        p50, p95, p99 = np.percentile(self._latencies[self._warm_up :], (50, 95, 99))
        return Simulation(
            window=self._window,
            batches=self._batches - self._warm_up,
            batches_per_s=self._rate(),
            latency_ms_p50=float(p50),
            latency_ms_p95=float(p95),
            latency_ms_p99=float(p99),
            devices={
                name: self._device_load(station, stage, elapsed_ms)
                for stage in self._stations
                for name, station in stage.items()
            },
            broker=self._broker.load(elapsed_ms),
            client=self._client.load(elapsed_ms),
            client_up=self._client_up.load(elapsed_ms),
            client_down=self._client_down.load(elapsed_ms),
        )

    def _rate(self) -> float:
        """Batches a second, from the mean times of the first and the last window of results.

        Results may come in bursts, one a window: between two single results the rate would depend
        on where in a burst each of them is.
        """
        ended_at = np.array(self._ended_at[self._warm_up - 1 :])
        elapsed_ms = ended_at[-self._window :].mean() - ended_at[: self._window].mean()
        return float((len(ended_at) - self._window) / max(elapsed_ms, 1e-9) * 1e3)

    @staticmethod
    def _device_load(
        station: _Station, stage: Mapping[str, _Station], elapsed_ms: float
    ) -> DeviceLoad:
        served = {id(each): each.batches - each.batches_before for each in stage.values()}
        return DeviceLoad(
            share=served[id(station)] / max(1, sum(served.values())),
            processor=station.processor.load(elapsed_ms),
            up=station.up.load(elapsed_ms),
            down=station.down.load(elapsed_ms),
            longest_held=station.longest_held,
        )
