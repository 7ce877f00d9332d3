"""What the retained statuses tell together: who is live for a plan, who failed. Pure."""

from contract.plan import Plan
from contract.status import DeviceState, DeviceStatus, ShardState


class FleetView:
    """The latest status of every device, judged by one plan."""

    def __init__(self) -> None:
        self._statuses: dict[str, DeviceStatus] = {}

    def update(self, status: DeviceStatus) -> DeviceStatus | None:
        """Take a status in; the one that it replaces."""
        previous = self._statuses.get(status.device)
        self._statuses[status.device] = status
        return previous

    def get(self, device: str) -> DeviceStatus | None:
        """The latest status of a device, if it was ever seen."""
        return self._statuses.get(device)

    def statuses(self) -> list[DeviceStatus]:
        """The latest status of every device seen."""
        return list(self._statuses.values())

    def describe(self, device: str) -> str:
        """``ready``, ``loading``, ``offline``, ``not seen`` …"""
        status = self._statuses.get(device)
        if status is None:
            return "not seen"
        if status.state is DeviceState.ONLINE:
            return str(status.shard)
        return f"{status.state} ({status.error})" if status.error else str(status.state)

    def forget_failures(self) -> None:
        """Forget devices that failed: a plan that is published again makes them try again."""
        self._statuses = {
            name: status
            for name, status in self._statuses.items()
            if status.shard is not ShardState.FAILED
        }

    def failure(self, plan: Plan) -> str | None:
        """Why some device of the plan cannot load its shard, if one cannot."""
        for status in self._statuses.values():
            if (
                status.state is DeviceState.ONLINE
                and status.shard is ShardState.FAILED
                and status.plan_id == plan.plan_id
            ):
                return f"device {status.device}: {status.error}"
        return None


def is_live(status: DeviceStatus | None, plan: Plan) -> bool:
    """Whether the device can take batches of its stage of this plan now."""
    if status is None:
        return False
    stage = plan.stage_of(status.device)
    return (
        status.state is DeviceState.ONLINE
        and status.shard is ShardState.READY
        and status.plan_id == plan.plan_id
        and stage is not None
        and status.stage_index == stage.stage_index
    )
