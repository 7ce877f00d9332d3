"""The `.env` of a rendered folder. Pure. No secret is in it.

Compose reads it for the variables of docker-compose.arm64.yml, and Shardline's commands read it
when they run in that folder without a container.
"""

from collections.abc import Mapping

from deploy.inventory import BROKER_SERVICE, Fleet, Machine, Security, host_and_port

CONTAINER_PORT = 8883
CA_CERT, USER_CERT, USER_KEY = "secrets/ca.crt", "secrets/user.crt", "secrets/user.key"
PASSWORD = "secrets/password"  # noqa: S105 where it is, not what it is
_BROKER_HERE = host_and_port(BROKER_SERVICE, CONTAINER_PORT)


def machine_env(fleet: Fleet, machine: Machine) -> str:
    """For a device, the broker's host, or both at once."""
    values: dict[str, str | int] = {}
    if machine.device is not None:
        # On the broker's own machine the stage takes the short way, which no firewall closes.
        far = host_and_port(fleet.broker_address, fleet.broker.port)
        values |= {
            "SHARDLINE_DEVICE": machine.name,
            "SHARDLINE_CLUSTER": fleet.cluster,
            "SHARDLINE_BROKER": _BROKER_HERE if machine.runs_broker else far,
            "SHARDLINE_STAGE_MEMORY": machine.device.stage_memory,
        }
    if machine.broker_memory is not None:
        values |= {
            "COMPOSE_PROFILES": BROKER_SERVICE,
            "SHARDLINE_BROKER_PORT": fleet.broker.port,
            "SHARDLINE_BROKER_MEMORY": machine.broker_memory,
        }
    return _text(values | {"SHARDLINE_UID": machine.uid, "SHARDLINE_GID": machine.gid})


def user_env(fleet: Fleet, user: str, owner: tuple[int, int]) -> str:
    """For the planner, a client or an observer on this machine; ``owner``: its uid and gid."""
    if fleet.security is Security.CERTIFICATES:
        shown = {"SHARDLINE_CERT_FILE": USER_CERT, "SHARDLINE_KEY_FILE": USER_KEY}
    else:
        shown = {"SHARDLINE_PASSWORD_FILE": PASSWORD}
    return _text(
        {
            "SHARDLINE_BROKER": host_and_port(fleet.broker_address, fleet.broker.port),
            "SHARDLINE_CLUSTER": fleet.cluster,
            "SHARDLINE_USERNAME": user,
            "SHARDLINE_CA_FILE": CA_CERT,
            **shown,
            "SHARDLINE_UID": owner[0],
            "SHARDLINE_GID": owner[1],
        }
    )


def _text(values: Mapping[str, str | int]) -> str:
    return "".join(f"{name}={value}\n" for name, value in values.items())
