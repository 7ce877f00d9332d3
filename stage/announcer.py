"""What a device says of itself: its retained status, its will, and both again when overwritten.

Knows what a status looks like and when it must be told again; what is in it, the agent decides.
"""

import platform
import secrets
import threading

import psutil

from broker.transport import Connection, Will
from contract import topics
from contract.errors import ShardlineError, WireFormatError
from contract.plan import Plan, StageSpec
from contract.status import Capabilities, DeviceState, DeviceStatus, ShardState, parse_status
from contract.version import SHARDLINE_VERSION
from stage.cores import available_cores

GOODBYE_TIMEOUT_S = 2.0


class Announcer:
    """The status of one device, for as long as one process serves it. Thread-safe."""

    def __init__(self, cluster: str, device: str, engine: str, engine_version: str) -> None:
        self._device = device
        self._topic = topics.status_topic(cluster, device)
        self._boot = secrets.randbits(53)  # fits a JSON number exactly
        self._capabilities = Capabilities(
            machine=platform.machine(),
            cores=available_cores(),
            memory_bytes=psutil.virtual_memory().total,
            engine=engine,
            engine_version=engine_version,
            shardline_version=SHARDLINE_VERSION,
        )
        self._connection: Connection | None = None
        self._announcing = threading.Lock()
        self._status = self._make(DeviceState.ONLINE)

    @property
    def status(self) -> DeviceStatus:
        """What is announced now."""
        return self._status

    def will(self) -> Will:
        """What the broker shall say when this device is lost."""
        return Will(self._topic, self._make(DeviceState.OFFLINE).model_dump_json().encode())

    def begin(self, connection: Connection) -> None:
        """Announce on this connection from now on, and listen for what others make of it."""
        self._connection = connection
        self.announce()

    def announce(self) -> None:
        """Publish the status, again if need be; nothing before :meth:`begin`."""
        if self._connection is None:
            return
        with self._announcing:  # the network thread must not publish an older status last
            payload = self._status.model_dump_json().encode()
            self._connection.publish(self._topic, payload, retain=True)

    def set_shard(
        self,
        shard: ShardState,
        plan: Plan | None = None,
        spec: StageSpec | None = None,
        error: str | None = None,
    ) -> None:
        """Say what the shard is now."""
        self._status = self._make(
            DeviceState.ONLINE,
            shard=shard,
            plan_id=plan.plan_id if plan else None,
            stage_index=spec.stage_index if spec else None,
            error=error,
        )
        self.announce()

    def answer(self, payload: bytes) -> None:
        """A late will of a lost connection may have overwritten the birth: announce again."""
        try:
            status = parse_status(payload, self._device)
        except WireFormatError:
            self.announce()  # whoever wrote that, it is not what others should read of us
            return
        if status != self._status:
            self.announce()

    def say_goodbye(self, error: str | None = None) -> bool:
        """Say that the device stops, and why if it had to; whether the broker has heard it."""
        self._status = self._make(DeviceState.STOPPED, error=error)
        if self._connection is None:
            return False
        try:
            self._connection.publish(
                self._topic, self._status.model_dump_json().encode(), retain=True
            ).result(timeout=GOODBYE_TIMEOUT_S)
        except (ShardlineError, TimeoutError):
            return False
        return True

    def _make(
        self,
        state: DeviceState,
        *,
        shard: ShardState = ShardState.IDLE,
        plan_id: str | None = None,
        stage_index: int | None = None,
        error: str | None = None,
    ) -> DeviceStatus:
        return DeviceStatus(
            device=self._device,
            state=state,
            boot=self._boot,
            shard=shard,
            plan_id=plan_id,
            stage_index=stage_index,
            error=error,
            capabilities=self._capabilities,
        )
