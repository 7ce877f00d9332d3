"""A language model of 311 MB on four devices of 200 MB each: its text is the whole model's."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.fleet import ContainerFleet
from tests.containers.test_limits import MB, peak
from tests.random_llama import TOKENIZER, greedy_text, save_random_llama

DEVICES = ("pi-0", "pi-1", "pi-2", "pi-3")
LIMIT = 200 * 1024**2
NAME = "language"
MODEL = "/models/random"
PROMPT = "## What is promised"
TOKENS = 32


def mounted(service: str, source: Path, target: str) -> dict[str, object]:
    bind = {"type": "bind", "source": str(source), "target": target, "read_only": True}
    return {"services": {service: {"volumes": [bind]}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    for each in (folder, *folder.parents):
        if "pytest" in str(each):
            each.chmod(0o755)  # whoever a container runs as
    model = save_random_llama(folder / "random")
    for file in model.iterdir():
        file.chmod(0o644)
    return model


@pytest.fixture(scope="module")
def fleet(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerFleet]:
    with ContainerFleet(
        tmp_path_factory.mktemp("language"),
        DEVICES,
        kind="other-amd64",
        arch="amd64",
        inventory={device: {"memory": "200m"} for device in DEVICES},
        faults={
            "planner": mounted("planner", model, MODEL),
            "clients/client": mounted("client", TOKENIZER, "/tokenizer"),
        },
    ) as fleet:
        fleet.start("hub", *DEVICES)
        yield fleet


def test_four_devices_write_what_none_of_them_could_hold(
    fleet: ContainerFleet, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for device in DEVICES:
        memory = fleet.inspect(fleet.container(device), "{{.HostConfig.Memory}}")
        assert int(memory) == LIMIT
    plan = json.loads(
        fleet.planner(
            *("plan", f"hf:{MODEL}", "--stages", "4", "--name", NAME, "--json"),
            *("--context", "128", "--sequences", "2"),
        )
    )
    weights = [stage["weight_bytes"] for stage in plan["stages"]]
    assert sum(weights) > 1.4 * LIMIT, "no device may be able to hold the model"
    fleet.planner("publish", f"shards/built/{NAME}", *(f"--device={device}" for device in DEVICES))
    done = fleet.compose(
        "clients/client",
        *("run", "--rm", "-T", "client", "generate", PROMPT, "--json"),
        *("--max-tokens", str(TOKENS), "--tokenizer", "/tokenizer"),
        timeout_s=400,
    )
    written = json.loads(done.stdout)
    assert written["tokens"] == TOKENS
    assert written["texts"][0]["text"] == greedy_text(model, PROMPT, TOKENS)
    memory_mb = {device: peak(fleet, device) for device in DEVICES}  # and no container was killed
    lines = [
        "",
        f"a Llama of {sum(weights) / MB:.0f} MB on four devices of {LIMIT / MB:.0f} MB",
        *(
            f"  {device:6} {held / MB:5.0f} MB of weights {figures['now']:6.0f} MB now "
            f"{figures['peak']:6.0f} MB peak"
            for (device, figures), held in zip(memory_mb.items(), weights, strict=True)
        ),
        f"  {written['tokens_per_s']} tokens/s, the first after {written['first_token_ms']} ms",
    ]
    with capsys.disabled():
        sys.stderr.write("\n".join(lines) + "\n")
