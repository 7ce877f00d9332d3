"""The container images, without building one: pins, hashes, users, health checks."""

import fnmatch
import json
import re
import tomllib
from pathlib import Path

import pytest

from contract.version import SHARDLINE_VERSION

ROOT = Path(__file__).parent.parent
DOCKERFILES = {
    "stage": ROOT / "Dockerfile.stage",
    "planner": ROOT / "images/planner/Dockerfile",
    "client": ROOT / "images/client/Dockerfile",
    "broker": ROOT / "images/broker/Dockerfile",
}
LOCKS = {path.stem: path for path in (ROOT / "images/requirements").glob("*.txt")}
MACHINES = {"x86_64", "aarch64"}
LONG_RUNNING = {"stage", "broker"}
each_image = pytest.mark.parametrize("image", DOCKERFILES)
each_lock = pytest.mark.parametrize("lock", sorted(LOCKS))


def instructions(image: str) -> list[tuple[str, str]]:
    """Every instruction and its arguments, continued lines joined, without comments."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILES[image].read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    parted = [line.strip().partition(" ") for line in lines if line.strip()]
    return [(name, " ".join(rest.split())) for name, _, rest in parted]


def last_stage(image: str) -> list[tuple[str, str]]:
    """The instructions of the image that is shipped."""
    found = instructions(image)
    begin = max(i for i, (name, _) in enumerate(found) if name == "FROM")
    return found[begin:]


def arguments(image: str, name: str) -> list[str]:
    return [rest for instruction, rest in last_stage(image) if instruction == name]


def entries(lock: str) -> list[str]:
    """A lock's packages, each with its comment, pin, marker and hashes."""
    return [block for block in LOCKS[lock].read_text().split("\n\n") if "==" in block]


def pin_of(entry: str) -> str:
    found = re.search(r"^(\S+==\S+) ", entry, re.MULTILINE)
    assert found, entry
    return found[1]


def machines_of(entry: str) -> set[str]:
    """Where an entry holds: one architecture if it has a marker, else both."""
    found = re.search(r"; platform_machine == '(\w+)'", entry)
    return {found[1]} if found else MACHINES


def wheels_of(entry: str) -> list[str]:
    return re.findall(r"^# (\S+\.whl)$", entry, re.MULTILINE)


def pinned_versions(*extras: str) -> dict[str, set[str]]:
    """Name and the versions that pyproject.toml gives it (torch has one an architecture)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions: dict[str, set[str]] = {}
    more = (pin for extra in extras for pin in project["optional-dependencies"][extra])
    for pin in (*project["dependencies"], *more):
        name, _, version = pin.partition(";")[0].strip().partition("==")
        versions.setdefault(name, set()).add(version)
    return versions


@each_lock
def test_a_lock_has_the_versions_of_pyproject(lock: str) -> None:
    ours = pinned_versions("planner", "watch", "llm")
    for entry in entries(lock):
        name, _, version = pin_of(entry).partition("==")
        known = ours.get(name, {version.removesuffix("+cpu")})
        assert version.removesuffix("+cpu") in known, f"run scripts/lock {lock}"


@each_lock
def test_every_package_has_a_hash_for_each_architecture_and_nothing_but_cp311(lock: str) -> None:
    for entry in entries(lock):
        wheels = wheels_of(entry)
        assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry)) == len(wheels) > 0, entry
        for machine in machines_of(entry):
            fitting = [w for w in wheels if w.endswith((f"{machine}.whl", "-none-any.whl"))]
            assert len(fitting) == 1, f"{pin_of(entry)} on {machine}"
        assert all(re.search(r"-(cp311|py3|py2\.py3|cp\d+-abi3)-", wheel) for wheel in wheels)


@each_lock
def test_a_package_is_locked_once_for_each_architecture(lock: str) -> None:
    for machine in MACHINES:
        names = [pin_of(e).partition("==")[0] for e in entries(lock) if machine in machines_of(e)]
        assert len(names) == len(set(names))


def test_the_planner_s_lock_has_all_of_our_dependencies() -> None:
    for machine in MACHINES:
        here = [entry for entry in entries("planner") if machine in machines_of(entry)]
        assert set(pinned_versions("planner")) <= {
            pin_of(entry).partition("==")[0] for entry in here
        }


def test_a_stage_brings_neither_the_planner_s_packages_nor_what_onnxruntime_does_without() -> None:
    names = {pin_of(entry).partition("==")[0] for entry in entries("stage")}
    assert {"numpy", "onnxruntime", "safetensors", "paho-mqtt"} <= names
    unwanted = {"torch", "torchvision", "onnx", "pillow", "sympy", "mpmath", "protobuf"}
    assert names & (unwanted | {"coloredlogs", "humanfriendly"}) == set()


def test_the_dashboard_s_packages_are_in_the_client_s_image_and_in_no_stage() -> None:
    names = {lock: {pin_of(entry).partition("==")[0] for entry in entries(lock)} for lock in LOCKS}
    assert {"starlette", "uvicorn"} <= names["client"]
    assert {"starlette", "uvicorn"} & (names["stage"] | names["stage-torch"]) == set()


@pytest.mark.parametrize("lock", ["planner", "stage-torch"])
def test_torch_is_its_build_for_the_cpu(lock: str) -> None:
    torch = [entry for entry in entries(lock) if pin_of(entry).startswith("torch==")]
    by_machine = {machine: entry for entry in torch for machine in machines_of(entry)}
    assert all("+cpu-" in wheel for wheel in wheels_of(by_machine["x86_64"]))
    assert pin_of(by_machine["aarch64"]) == "torch==2.10.0", "the last without CUDA on arm64"
    assert not re.search(r"^(nvidia|cuda|triton)", LOCKS[lock].read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", [*LOCKS.values(), *DOCKERFILES.values()], ids=lambda p: p.name)
def test_no_file_names_an_index_or_a_host(path: Path) -> None:
    assert "://" not in path.read_text()


@each_image
def test_an_image_runs_as_a_numeric_user_who_is_not_root(image: str) -> None:
    assert arguments(image, "USER") == ["1000:1000"]
    changing = [name for name, _ in last_stage(image)]
    assert "RUN" not in changing[changing.index("USER") :]


@each_image
def test_an_entry_point_is_a_list_so_that_it_receives_signals(image: str) -> None:
    (entry_point,) = arguments(image, "ENTRYPOINT")
    assert json.loads(entry_point)
    assert all(json.loads(command) for command in arguments(image, "CMD"))


@each_image
def test_what_runs_for_long_has_a_health_check(image: str) -> None:
    checks = arguments(image, "HEALTHCHECK")
    assert len(checks) == (1 if image in LONG_RUNNING else 0)
    for check in checks:
        assert json.loads(check.partition("CMD ")[2])
        assert {"--interval", "--timeout", "--start-period", "--retries"} <= set(
            re.findall(r"--[a-z-]+", check.partition("CMD ")[0])
        )


@each_image
def test_an_image_is_labelled(image: str) -> None:
    label = " ".join(arguments(image, "LABEL"))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {"title", "description", "version", "licenses"} == set(
        re.findall(r"org\.opencontainers\.image\.(\w+)=", label)
    )
    assert arguments(image, "ARG") == [f"VERSION={version}"]


@each_image
def test_no_secret_can_come_through_an_argument_or_a_variable(image: str) -> None:
    for name, rest in instructions(image):
        if name in {"ARG", "ENV"}:
            names = re.findall(r"(?:^| )([A-Z_]+)=", rest)
            assert names
            assert not [n for n in names if re.search("PASS|SECRET|TOKEN|CREDENTIAL|KEY", n)]


@each_image
def test_an_image_copies_only_what_git_has_and_the_build_context_lets_through(image: str) -> None:
    allowed = [
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = [rest for name, rest in instructions(image) if name == "COPY"]
    for source in [s for rest in copied if "--from" not in rest for s in rest.split()[:-1]]:
        assert (ROOT / source).exists()
        assert any(f"{source.rstrip('/')}/".startswith(f"{folder}/") for folder in allowed), source


def test_repository_environment_builds_and_credentials_stay_out_of_the_context() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines, "nothing comes in that is not listed"
    excluded = [line for line in lines if line and not line.startswith(("#", "!"))]
    # What may come to lie inside a folder that is let through.
    last_inclusion = max(i for i, line in enumerate(lines) if line.startswith("!"))
    assert lines.index("shards/built") > last_inclusion
    patterns = [line.removeprefix("**/") for line in excluded if line != "*"]
    for path in (".git", ".venv", ".env", "shards/built", "deploy/credentials", "deploy/.env"):
        names = (path, Path(path).name)
        assert any(fnmatch.fnmatch(name, p) for name in names for p in patterns), path


def test_bake_builds_every_dockerfile_for_both_architectures() -> None:
    bake = (ROOT / "docker-bake.hcl").read_text()
    named = set(re.findall(r'dockerfile = "([^"]+)"', bake))
    assert named == {str(path.relative_to(ROOT)) for path in DOCKERFILES.values()}
    assert 'platforms = ["linux/arm64", "linux/amd64"]' in bake
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(rf'variable "VERSION" {{\n  default = "{re.escape(version)}"', bake)
    for image in (*DOCKERFILES, "stage-torch"):
        assert f'tags       = ["${{REGISTRY}}shardline/{image}:${{VERSION}}"]' in bake


def test_bake_and_the_dockerfiles_start_from_the_same_bases() -> None:
    bake = (ROOT / "docker-bake.hcl").read_text()
    for image in DOCKERFILES:
        (base,) = [r for n, r in instructions(image) if n == "ARG" and r.startswith("BASE_IMAGE=")]
        assert f'"{base.removeprefix("BASE_IMAGE=")}"' in bake


def test_the_images_scripts_can_be_run() -> None:
    for name in (
        "scripts/images",
        "scripts/lock",
        "images/base/build",
        "images/base/emulate",
        "images/broker/entrypoint",
        "images/install",
        "images/precompile",
        "images/shardline",
    ):
        assert (ROOT / name).stat().st_mode & 0o111, name


def test_the_wheels_folder_exists_in_a_fresh_clone() -> None:
    assert (ROOT / "images/wheels/.gitkeep").exists(), "COPY fails on a folder that is not there"
    assert "images/wheels/*/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("pyproject.toml", r'^version = "(.+)"'),
        ("docker-bake.hcl", r'variable "VERSION" \{\n  default = "(.+)"'),
        ("docker-compose.arm64.yml", r"shardline/\w+:([^}]+)\}"),
        (".env.example", r"=shardline/\w+:(.+)"),
        *((str(path.relative_to(ROOT)), r"^ARG VERSION=(.+)") for path in DOCKERFILES.values()),
    ],
)
def test_every_file_that_names_the_version_names_the_same(file: str, pattern: str) -> None:
    found = re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)
    assert set(found) == {SHARDLINE_VERSION}
