"""Mosquitto's access control file: what each user may write and read; all else is denied.

Rights are static, one section a user: nothing changes when a plan does. A user writes only topics
that end in its own name, so the broker vouches for every sender; it reads only what is for it.
"""

from typing import NamedTuple

from contract import topics
from deploy.inventory import HEALTH_USER, Fleet


class Rights(NamedTuple):
    """Topic filters of one user. What ``never`` names is denied, whatever the others say."""

    write: tuple[str, ...]
    read: tuple[str, ...]
    never: tuple[str, ...] = ()


def device_rights(cluster: str, device: str) -> Rights:
    """A device takes batches, passes them on, fetches its shard, tells how it is and what time.

    It answers a planner and commands nobody, and it feeds no first stage: that is what clients do.
    """
    return Rights(
        write=(
            topics.status_topic(cluster, device),
            topics.sent_input_filter(cluster, device),
            topics.sent_result_filter(cluster, device),
            topics.sent_nack_filter(cluster, device),
            topics.sent_blob_filter(cluster, device),
            topics.sent_answer_filter(cluster, device),
            topics.sent_clock_filter(cluster, device),
            topics.command_topic(cluster, device, device),  # to itself: the self-test
            topics.metrics_topic(cluster, device),
            topics.event_topic(cluster, device),
        ),
        read=(
            topics.plan_topic(cluster),
            topics.status_topic(cluster, device),
            topics.input_filter(cluster, device),
            topics.command_filter(cluster, device),
            topics.blob_filter(cluster, device),
            topics.clock_filter(cluster, device),
        ),
        never=(topics.sent_input_filter(cluster, device, stage_index=0),),
    )


def planner_rights(cluster: str, planner: str) -> Rights:
    """The planner publishes the plan, hands out shards, and watches."""
    return Rights(
        write=(
            topics.plan_topic(cluster),
            topics.sent_command_filter(cluster, planner),
            topics.sent_blob_filter(cluster, planner),
            topics.answer_topic(cluster, planner, planner),  # to itself: the self-test
            topics.event_topic(cluster, planner),
        ),
        read=(
            topics.plan_topic(cluster),
            topics.status_filter(cluster),
            topics.answer_filter(cluster, planner),
            topics.blob_filter(cluster, planner),
            topics.metrics_filter(cluster),
            topics.event_filter(cluster),
            topics.BROKER_DROPPED,
        ),
    )


def client_rights(cluster: str, client: str) -> Rights:
    """A client feeds batches to any device of a first stage and reads its own results only."""
    return Rights(
        write=(
            topics.sent_input_filter(cluster, client, stage_index=0),
            topics.pipeline_metrics_topic(cluster, client),
            topics.trace_topic(cluster, client),
            topics.sent_clock_filter(cluster, client),
            topics.event_topic(cluster, client),
            *topics.client_self_topics(cluster, client),  # whoever may not hear itself, says so
        ),
        read=(
            topics.plan_topic(cluster),
            topics.status_filter(cluster),
            topics.result_filter(cluster, client),
            topics.nack_filter(cluster, client),
            topics.clock_filter(cluster, client),
            topics.BROKER_DROPPED,
        ),
    )


def observer_rights(cluster: str, *, home_assistant: bool = False) -> Rights:
    """An observer writes nothing, and sees no batch. Home Assistant is one, if the fleet tells it
    what to show.
    """
    return Rights(
        write=(),
        read=(
            topics.plan_topic(cluster),
            topics.status_filter(cluster),
            topics.metrics_filter(cluster),
            topics.event_filter(cluster),
            topics.BROKER_FILTER,
            *((topics.discovery_filter(cluster),) if home_assistant else ()),
        ),
    )


def announcer_rights(cluster: str) -> Rights:
    """Who tells Home Assistant writes what it shall show, and knows which devices there are."""
    return Rights(
        write=(topics.discovery_filter(cluster),),
        read=(topics.status_filter(cluster), topics.discovery_filter(cluster)),
    )


def health_rights() -> Rights:
    """The broker's own health check."""
    return Rights(write=(), read=(topics.BROKER_UPTIME,))


def rights_of(fleet: Fleet) -> dict[str, Rights]:
    """Every user of the fleet's broker with its rights."""
    cluster, told = fleet.cluster, fleet.home_assistant is not None
    return {
        **{device.name: device_rights(cluster, device.name) for device in fleet.devices},
        fleet.planner: planner_rights(cluster, fleet.planner),
        **{name: client_rights(cluster, name) for name in fleet.clients},
        **{name: observer_rights(cluster, home_assistant=told) for name in fleet.observers},
        **{name: announcer_rights(cluster) for name in fleet.announcers},
        HEALTH_USER: health_rights(),
    }


def render_acl(fleet: Fleet) -> str:
    """The file, for Mosquitto's ``acl_file``."""
    sections = [
        "\n".join(
            (
                f"user {user}",
                *(f"topic deny {topic}" for topic in rights.never),
                *(f"topic write {topic}" for topic in rights.write),
                *(f"topic read {topic}" for topic in rights.read),
            )
        )
        for user, rights in rights_of(fleet).items()
    ]
    return "\n\n".join(sections) + "\n"
