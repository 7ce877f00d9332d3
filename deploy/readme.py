"""The README.txt of each rendered folder: the exact commands for that folder. Pure.

Every command is one line that can be pasted into a terminal; `#` says where it runs.
"""

from contract import topics
from deploy.inventory import Fleet, Machine, host_and_port

REMOTE_FOLDER = "shardline"
STAGE_IMAGE_TAR = "shardline-stage.tar"
BROKER_IMAGE_TAR = "shardline-broker.tar"


def device_readme(fleet: Fleet, machine: Machine) -> str:
    """For a Pi that runs a stage, and perhaps the broker."""
    also = "" if not machine.runs_broker else " It also runs the broker: start it first."
    return (
        f"{machine.name}: a stage of cluster {fleet.cluster}.{also}\n\n"
        + _copying(machine)
        + _loading(machine)
        + _starting(machine)
        + "The stage then waits for a plan: see ../planner/README.txt.\n"
    )


def broker_host_readme(fleet: Fleet, machine: Machine) -> str:
    """For a machine that runs the broker and no stage."""
    return (
        f"{machine.name}: the broker of cluster {fleet.cluster}. Start it before any stage.\n\n"
        + _copying(machine)
        + _loading(machine)
        + _starting(machine)
    )


def planner_readme(fleet: Fleet) -> str:
    """For the machine that plans and publishes."""
    model = "torchvision:mobilenet_v2"
    return f"""\
{fleet.planner}: plans models and publishes them to cluster {fleet.cluster}.

On this machine, in this folder, in a container:

    docker compose run --rm planner plan {model} --stages {len(fleet.devices)}
    docker compose up -d planner

The second is a service: it publishes the plan that SHARDLINE_PLAN in .env names (shards/built/
mobilenet_v2 without it), and plans anew when a device is lost or comes back. To see what it does:

    docker compose logs -f planner

Or with an installed `shardline`, which reads the same .env:

    shardline plan {model} --stages {len(fleet.devices)}
    shardline publish shards/built/mobilenet_v2 --watch

One process at a time under this name: stop the service before you publish by hand or profile.

With docker-compose 1.29, write `docker-compose` for `docker compose`. Plans are written to
shards/built; model files that you put into this folder can be named by their path from here.
"""


def client_readme(fleet: Fleet, name: str) -> str:
    """For a machine that feeds pictures."""
    return f"""\
{name}: feeds pictures to cluster {fleet.cluster}.

In this folder, with pictures in pictures/ (or SHARDLINE_PICTURES=FOLDER in .env), in a container;
one row a picture is written to results/results.jsonl:

    docker compose run --rm client infer /pictures

or with an installed `shardline`, which reads the same .env:

    shardline infer pictures --out results/results.jsonl

With docker-compose 1.29, write `docker-compose` for `docker compose`. One process at a time: a
second one with this name throws the first out of the broker. For more, name more clients in
fleet.yaml.
"""


def observer_readme(fleet: Fleet, name: str) -> str:
    """For whoever watches."""
    broker = host_and_port(fleet.broker_address, fleet.broker.port)
    return f"""\
{name}: watches cluster {fleet.cluster} at {broker}, and can write nothing.

In a browser, by a container that serves http://127.0.0.1:8080/ (SHARDLINE_DASHBOARD_ADDRESS in .env
chooses another address):

    docker compose up -d dashboard

Or with an installed `shardline`, in this folder, whose .env holds their options: in a terminal, in
a browser without a container, or into files:

    shardline top
    shardline dashboard
    shardline metrics --csv records

And with the options of mosquitto_sub, which it holds as well:

    XDG_CONFIG_HOME="$PWD" mosquitto_sub -v -t '{topics.metrics_filter(fleet.cluster)}'
    XDG_CONFIG_HOME="$PWD" mosquitto_sub -v -t '{topics.event_filter(fleet.cluster)}'
    XDG_CONFIG_HOME="$PWD" mosquitto_sub -v -t '{topics.status_filter(fleet.cluster)}'

One process at a time: a second one with this name throws the first out of the broker. For more,
name more observers in fleet.yaml.
"""


def announcer_readme(fleet: Fleet, name: str) -> str:
    """For whoever tells Home Assistant."""
    return f"""\
{name}: tells Home Assistant what there is to show of cluster {fleet.cluster}. It can write nothing
else, and reads no more than which devices there are.

In this folder, with an installed `shardline`, which reads .env:

    shardline metrics --home-assistant
    shardline metrics --home-assistant-remove

The first stays, and tells of devices that are new; what it told is kept by the broker when it ends.
Home Assistant itself connects to {host_and_port(fleet.broker_address, fleet.broker.port)} as an
observer of its own: give its MQTT integration the files in secrets/ of that observer's folder.
"""


def _copying(machine: Machine) -> str:
    login, folder, there = f"{machine.user}@{machine.address}", machine.name, REMOTE_FOLDER
    return f"""\
Copy this folder (from the folder above it, on the machine where it was made; modes are kept):

    tar -C {folder} -cf - . | ssh {login} 'mkdir -p {there} && tar -C {there} -xpf -'

The containers run as uid {machine.uid} and gid {machine.gid}. `ssh {login} id` must say
the same; otherwise correct uid and gid in fleet.yaml and render again.

"""


def _loading(machine: Machine) -> str:
    tars = [STAGE_IMAGE_TAR] if machine.device is not None else []
    tars += [BROKER_IMAGE_TAR] if machine.runs_broker else []
    lines = "".join(
        f"    ssh {machine.user}@{machine.address} docker load < {tar}\n" for tar in tars
    )
    return f"Load the images, if no registry has them:\n\n{lines}\n"


def _starting(machine: Machine) -> str:
    login = f"{machine.user}@{machine.address}"
    return f"""\
Start, and see that it is healthy:

    ssh {login} 'cd {REMOTE_FOLDER} && docker compose up -d && docker compose ps'

With docker-compose 1.29, write `docker-compose` for `docker compose`. After rendering again: copy,
then `docker compose up -d --force-recreate`.

"""
