"""deploy/k3s: valid for Kubernetes, hardened, and in step with the compose file and the options."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from deploy import acl
from shardline.app import app
from stage.health import HEARTBEAT_VARIABLE

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy" / "k3s"
README = (FOLDER / "README.md").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.arm64.yml").read_text())
KUBERNETES = "1.34"
FILES = sorted(file for file in FOLDER.glob("*.yaml") if file.name != "kustomization.yaml")
SNIPPETS = re.findall(r"```yaml\n(.*?)```", README, flags=re.S)
BY_HAND = {"planner.yaml", "outside.yaml"}
SECRETS = {"broker", "devices", "planner"}
WITH_PODS = {"Deployment", "DaemonSet", "Job"}

Manifest = dict[str, Any]


def manifests(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document is not None]


SHIPPED = [(file.name, manifest) for file in FILES for manifest in manifests(file.read_text())]
EXAMPLES = [("README.md", manifest) for text in SNIPPETS for manifest in manifests(text)]
ALL = [(name, m) for name, m in SHIPPED + EXAMPLES if m["apiVersion"].count("kustomize") == 0]
WORKLOADS = [(name, m) for name, m in ALL if m["kind"] in WITH_PODS]


def named(case: tuple[str, Manifest]) -> str:
    return f"{case[0]}-{case[1]['kind']}-{case[1]['metadata']['name']}"


def pod(workload: Manifest) -> dict[str, Any]:
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def containers(workload: Manifest) -> list[dict[str, Any]]:
    return [*pod(workload).get("initContainers", []), *pod(workload)["containers"]]


ALL_CONTAINERS = [
    (f"{name}-{container['name']}", workload, container)
    for name, workload in WORKLOADS
    for container in containers(workload)
]
each_container = pytest.mark.parametrize(
    ("workload", "container"), [c[1:] for c in ALL_CONTAINERS], ids=[c[0] for c in ALL_CONTAINERS]
)
each_workload = pytest.mark.parametrize(
    "workload", [m for _, m in WORKLOADS], ids=[named(case) for case in WORKLOADS]
)


@pytest.mark.parametrize("manifest", [m for _, m in ALL], ids=[named(case) for case in ALL])
def test_every_manifest_is_valid_for_kubernetes(manifest: Manifest) -> None:
    assert kubernetes_validate.validate(manifest, KUBERNETES, strict=True) == KUBERNETES


def test_the_check_refuses_a_field_that_kubernetes_does_not_have() -> None:
    _, manifest = next(case for case in ALL if case[1]["kind"] == "DaemonSet")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest | {"nodes": []}, KUBERNETES, strict=True)


def test_every_file_is_applied_by_the_kustomization_or_named_in_the_readme() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    assert set(kustomization["resources"]) | BY_HAND == {file.name for file in FILES}
    assert not set(kustomization["resources"]) & BY_HAND
    for name in BY_HAND:
        assert f"kubectl apply -f deploy/k3s/{name}" in README


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", README):
        if not target.startswith("https:"):
            assert (FOLDER / target).exists(), target


def test_manifests_have_no_anchors() -> None:
    """Kustomize has had trouble with them."""
    for file in FILES:
        tokens = yaml.scan(file.read_text())
        assert not any(isinstance(t, yaml.AnchorToken | yaml.AliasToken) for t in tokens), file.name


@pytest.mark.parametrize("manifest", [m for _, m in ALL], ids=[named(case) for case in ALL])
def test_everything_is_in_the_one_namespace(manifest: Manifest) -> None:
    if manifest["kind"] == "Namespace":
        assert manifest["metadata"]["name"] == "shardline"
    else:
        assert manifest["metadata"]["namespace"] == "shardline"


@each_workload
def test_selectors_select_the_pods(workload: Manifest) -> None:
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == "shardline"
    if workload["kind"] != "Job":
        wanted = workload["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= labels.items()


def test_services_and_policies_select_pods_that_exist() -> None:
    pods = [m["spec"]["template"]["metadata"]["labels"] for _, m in WORKLOADS]
    for _, manifest in ALL:
        if manifest["kind"] == "Service":
            selectors = [manifest["spec"]["selector"]]
        elif manifest["kind"] == "NetworkPolicy":
            selectors = [manifest["spec"]["podSelector"].get("matchLabels", {})]
        else:
            continue
        for selector in selectors:
            assert any(selector.items() <= labels.items() for labels in pods)


def test_services_lead_to_the_port_of_the_broker() -> None:
    broker = next(m for name, m in WORKLOADS if name == "broker.yaml")
    ports = {p["name"]: p["containerPort"] for c in containers(broker) for p in c.get("ports", [])}
    services = [m for _, m in ALL if m["kind"] == "Service"]
    assert len(services) == 2
    for service in services:
        assert [(p["port"], ports[p["targetPort"]]) for p in service["spec"]["ports"]] == [
            (8883, 8883)
        ]


@each_workload
def test_every_pod_runs_without_rights(workload: Manifest) -> None:
    spec = pod(workload)
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 1000
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        assert key not in spec


@each_container
def test_every_container_is_closed_and_limited(
    workload: Manifest, container: dict[str, Any]
) -> None:
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}


@each_workload
def test_every_mount_has_a_volume_and_every_volume_a_mount(workload: Manifest) -> None:
    mounted = {mount["name"] for c in containers(workload) for mount in c["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod(workload)["volumes"]}
    assert mounted == volumes.keys()
    claims = {m["metadata"]["name"] for _, m in ALL if m["kind"] == "PersistentVolumeClaim"}
    for volume in volumes.values():
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["claimName"] in claims
        if "emptyDir" in volume:
            assert "sizeLimit" in volume["emptyDir"]
        if "hostPath" in volume:
            assert volume["hostPath"]["type"] == "Directory"  # never made by root


@each_container
def test_images_are_those_of_the_compose_file(
    workload: Manifest, container: dict[str, Any]
) -> None:
    component = workload["metadata"]["labels"]["app.kubernetes.io/component"]
    default = re.fullmatch(r"\$\{\w+:-(.+)\}", COMPOSE["services"][component]["image"])
    assert default is not None
    assert container["image"] == default[1]
    # On no public hub: a pulled image of that name would be a stranger's.
    assert container["imagePullPolicy"] == "Never"


def test_memory_limits_are_those_of_the_compose_file() -> None:
    for name, workload, container in ALL_CONTAINERS:
        if name.startswith("README"):
            continue
        component = workload["metadata"]["labels"]["app.kubernetes.io/component"]
        limit = re.sub(r".*:-|\}", "", COMPOSE["services"][component]["mem_limit"])
        assert container["resources"]["limits"]["memory"].lower() == f"{limit}i", name


def command_of(component: str, container: dict[str, Any]) -> str:
    arguments: list[str] = container.get("args", [component])
    return arguments[0]


@each_container
def test_variables_and_arguments_are_options_of_the_command(
    workload: Manifest, container: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    component = workload["metadata"]["labels"]["app.kubernetes.io/component"]
    names = {variable["name"] for variable in container.get("env", [])}
    if component == "broker":
        assert not names
        return
    command = typer.main.get_command(app).commands[command_of(component, container)]  # type: ignore[attr-defined]
    known = {parameter.envvar for parameter in command.params if parameter.envvar}
    unknown = {name for name in names if name.startswith("SHARDLINE_")} - known
    assert not unknown
    assert "SHARDLINE_PASSWORD" not in names
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], variable.get("value", "pi-0"))
    # Ends with an error if a value or an argument is none that the command takes.
    command.make_context(component, container.get("args", [component])[1:]).close()


def test_the_stage_has_what_it_needs() -> None:
    for stage in (m for name, m in WORKLOADS if name == "stage.yaml"):
        container = containers(stage)[0]
        env = container["env"]
        by_name = {variable["name"]: variable for variable in env}
        assert by_name["SHARDLINE_DEVICE"]["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"
        # $(…) is only replaced by what stands above it.
        order = [variable["name"] for variable in env]
        assert order.index("SHARDLINE_DEVICE") < order.index("SHARDLINE_CERT_FILE")
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        own = "/run/secrets/shardline/$(SHARDLINE_DEVICE)"
        assert by_name["SHARDLINE_CERT_FILE"]["value"] == f"{own}.crt"
        assert by_name["SHARDLINE_KEY_FILE"]["value"] == f"{own}.key"
        assert by_name["SHARDLINE_CA_FILE"]["value"] == "/run/secrets/shardline/ca.crt"
        assert "/run/secrets/shardline" in mounts
        assert by_name["SHARDLINE_CACHE"]["value"] in mounts
        assert str(Path(by_name[HEARTBEAT_VARIABLE]["value"]).parent) in mounts
        for probe in ("startupProbe", "readinessProbe"):
            assert container[probe]["exec"]["command"] == ["python3", "-m", "stage.health"]


def test_nothing_listens_but_the_broker() -> None:
    policies = {m["metadata"]["name"]: m["spec"] for _, m in ALL if m["kind"] == "NetworkPolicy"}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for spec in policies.values():
        for rule in spec.get("ingress", []):
            assert spec["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "broker"
            assert rule["ports"] == [{"protocol": "TCP", "port": 8883}]


def test_no_secret_is_in_a_manifest_and_each_is_made_in_the_readme() -> None:
    used = set()
    for _, workload in WORKLOADS:
        for volume in pod(workload)["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["defaultMode"] == 0o440
                used.add(volume["secret"]["secretName"])
    assert all(manifest["kind"] not in ("Secret", "ConfigMap") for _, manifest in ALL)
    assert used - {"device-pi-0"} == SECRETS
    for name in used:
        assert f"create secret generic {name} " in README, name


def test_the_brokers_probes_are_the_compose_files_and_never_overlap() -> None:
    broker = containers(next(m for name, m in WORKLOADS if name == "broker.yaml"))[1]
    dockerfile = (ROOT / "images" / "broker" / "Dockerfile").read_text()
    assert broker["startupProbe"]["exec"] == broker["livenessProbe"]["exec"]
    assert "readinessProbe" not in broker
    quoted = ", ".join(f'"{word}"' for word in broker["startupProbe"]["exec"]["command"])
    assert f"[{quoted}]" in dockerfile


def test_the_brokers_files_are_copied_for_their_user_alone(tmp_path: Path) -> None:
    """As Kubernetes shows a Secret: links to a folder. Twice, as after a restart of the node."""
    hidden = tmp_path / "secret" / "..data"
    hidden.mkdir(parents=True)
    names = {"mosquitto.conf", "acl", "ca.crt", "broker.crt", "broker.key", "mosquitto_sub"}
    for name in names:
        (hidden / name).write_text(f"{name}\n")
        (tmp_path / "secret" / name).symlink_to(f"..data/{name}")
    (tmp_path / "mosquitto" / "config").mkdir(parents=True)
    command = containers(next(m for name, m in WORKLOADS if name == "broker.yaml"))[0]["command"]
    script = re.sub(r"(?<= )/(secret|mosquitto)/", rf"{tmp_path}/\1/", command[-1])
    for _ in range(2):
        subprocess.run([*command[:-1], script], check=True, env={"PATH": os.environ["PATH"]})
    written = {
        str(file.relative_to(tmp_path / "mosquitto")): file
        for file in (tmp_path / "mosquitto").rglob("*")
        if file.is_file()
    }
    assert written.keys() == {f"config/{name}" for name in names}
    for file in written.values():
        assert not file.is_symlink()
        assert file.stat().st_mode & 0o077 == 0


def test_a_heartbeat_that_stops_is_noticed(tmp_path: Path) -> None:
    stage = containers(next(m for name, m in WORKLOADS if name == "stage.yaml"))[0]
    command = stage["livenessProbe"]["exec"]["command"]
    heartbeat = tmp_path / "heartbeat"
    env = {"PATH": os.environ["PATH"], HEARTBEAT_VARIABLE: str(heartbeat)}

    def is_alive() -> bool:
        return subprocess.run(command, env=env, capture_output=True, check=False).returncode == 0

    assert not is_alive()
    heartbeat.write_text("{}")
    assert is_alive()
    os.utime(heartbeat, (heartbeat.stat().st_mtime - 300,) * 2)
    assert not is_alive()


def test_the_emqx_rules_are_those_of_the_acl() -> None:
    page = (ROOT / "docs" / "scale.md").read_text()
    block = re.search(r"```erlang\n(.*?)```", page, flags=re.S)
    assert block is not None
    rules = re.findall(
        r'\{(allow|deny), \{username, (?:"(\w+)"|\{re, "\^(\w+)-"\})\}, (\w+), \[(.*?)\]\}\.',
        block[1],
        flags=re.S,
    )
    written = {
        (user or f"{prefix}-0", verb if rule == "allow" else "never"): tuple(
            topic.replace("${username}", user or f"{prefix}-0")
            for topic in re.findall(r'"([^"]+)"', topics)
        )
        for rule, user, prefix, verb, topics in rules
    }
    wanted = {
        "pi-0": acl.device_rights("default", "pi-0"),
        "planner": acl.planner_rights("default", "planner"),
        "client": acl.client_rights("default", "client"),
        "observer": acl.observer_rights("default"),
    }
    assert written == {
        (user, verb): topics
        for user, rights in wanted.items()
        for verb, topics in (
            ("publish", rights.write),
            ("subscribe", rights.read),
            ("never", rights.never),
        )
        if topics
    }
    assert block[1].rstrip().endswith("{deny, all}.")
