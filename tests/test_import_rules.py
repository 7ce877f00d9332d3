"""The map of the house, held against the code: who may import whom, and who may import what."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 400

INWARD = {
    "contract": set(),
    "broker": {"contract"},
    "shards": {"contract"},
    "stage": {"contract", "broker", "shards"},
    "planner": {"contract", "broker", "shards"},
    "client": {"contract", "broker", "shards"},
    "deploy": {"contract", "broker", "shards"},
    "shardline": {"contract", "broker", "shards", "stage", "planner", "client", "deploy"},
}
"""Packages of ours, and which others of ours each may import."""

ALLOWED = {
    "paho": ["broker/"],
    "torch": ["planner/", "stage/engines/"],
    "torchvision": ["planner/", "shardline/datasets.py"],
    "onnx": ["planner/", "stage/engines/"],
    "onnxscript": ["planner/"],
    "onnx_ir": ["planner/language/"],
    "transformers": ["planner/language/"],
    "tokenizers": ["client/tokenizer.py", "planner/language/"],
    "highspy": ["planner/solver/integer_program.py"],
    "onnxruntime": ["planner/", "shards/session.py", "stage/engines/"],
    "safetensors": ["planner/", "shards/", "stage/engines/"],
    "psutil": ["planner/", "stage/", "shardline/commands/doctor.py"],
    "PIL": ["client/", "planner/", "shardline/"],
    "simpy": ["planner/simulation/simulate.py"],
    "typer": ["shardline/"],
    "rich": ["shardline/"],
    "textual": ["shardline/top/app.py"],
    "dotenv": ["shardline/"],
    "yaml": ["deploy/"],
    "cryptography": ["deploy/"],
    "ssl": ["broker/"],
    "jinja2": ["client/chat_template.py", "shardline/report/"],
    "markupsafe": ["shardline/report/"],
    "prometheus_client": ["client/records/"],
    "pickle": [],
    "socket": ["broker/", "client/dashboard/serve.py", "client/serving/serve.py"],
    "starlette": [
        *("client/dashboard/", "client/serving/", "client/http_server.py"),
        "shardline/commands/dashboard.py",
    ],
    "uvicorn": ["client/http_server.py", "shardline/commands/dashboard.py"],
    "openai": [],
    "sklearn": [],
    "hypothesis": [],
    "pytest": [],
    "tests": [],
    "bench": [],
    "scripts": [],
    "examples": [],
}
"""Where each heavy or telling library may be imported; nowhere else in product code."""

PROBES = {
    # It imports both only to say in one sentence that they are missing.
    ("shardline/importing.py", "torch"),
    ("shardline/importing.py", "onnx"),
    # It names UnpicklingError, which torch.load(weights_only=True) raises for a hostile file.
    ("planner/importers/torch_weights.py", "pickle"),
}

CONTRACT_MAY_IMPORT = {
    *(
        "__future__",
        "collections",
        "dataclasses",
        "enum",
        "functools",
        "hashlib",
        "json",
        "math",
        "pathlib",
    ),
    *("re", "struct", "typing", "numpy", "pydantic", "xxhash", "contract"),
}
"""Pure things only: no network, no files beyond a path that a caller names, no framework."""

FILES = sorted(file for package in INWARD for file in (ROOT / package).rglob("*.py"))
NAMES = [str(file.relative_to(ROOT)) for file in FILES]
each_file = pytest.mark.parametrize("file", FILES, ids=NAMES)


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def imports(source: str) -> Iterator[str]:
    """Every module that a source imports, at any depth, lazily or by name included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: name the package"
            assert node.module is not None
            yield node.module
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func)
            argument = node.args[0]
            if called in ("importlib.import_module", "import_module", "__import__") and isinstance(
                argument, ast.Constant
            ):
                yield str(argument.value)


def top_levels(file: Path) -> set[str]:
    return {module.partition(".")[0] for module in imports(file.read_text())}


def broken_rules(name: str, modules: set[str]) -> list[str]:
    """What in ``modules`` the file called ``name`` may not import."""
    package = name.partition("/")[0]
    foreign = (modules & INWARD.keys()) - INWARD[package] - {package}
    found = [f"{name} imports {module}: not inward" for module in sorted(foreign)]
    for module in sorted(modules & ALLOWED.keys()):
        places = ALLOWED[module]
        if not name.startswith(tuple(places)) and (name, module) not in PROBES:
            found.append(f"{name} imports {module}: allowed only in {places or 'no product code'}")
    if package == "contract":
        found += [f"{name} imports {m}" for m in sorted(modules - CONTRACT_MAY_IMPORT)]
    return found


def test_the_rules_find_what_they_forbid() -> None:
    """The control of this file: imports of every form, each against a rule."""
    source = (
        "import paho.mqtt.client\n"
        "def late():\n    from torch import nn\n"
        "if TYPE_CHECKING:\n    import planner.graph\n"
        "importlib.import_module('onnx')\n"
    )
    modules = {module.partition(".")[0] for module in imports(source)}
    assert modules == {"paho", "torch", "planner", "onnx"}
    assert len(broken_rules("client/pipeline.py", modules)) == 4
    assert broken_rules("contract/plan.py", {"socket"})
    assert broken_rules("broker/connection.py", {"paho", "contract"}) == []
    assert broken_rules("stage/runner.py", {"client"})
    assert FILES


@each_file
def test_imports_point_inward_and_libraries_stay_in_their_rooms(file: Path) -> None:
    assert broken_rules(name_of(file), top_levels(file)) == []


def topic_like(text: str) -> bool:
    """Whether a text reads as one of our topics, or as a part of one."""
    return bool(
        re.match(r"shardline/[^/ ]*/", text)
        or re.search(r"(^|/)(device|client|metrics|event|blob|in|result|nack|command)/[+#{]", text)
        or re.search(r"/(in|result|nack|status|command)(/|$)", text)
    )


def strings(source: str) -> Iterator[str]:
    """String constants and the literal text of f-strings, docstrings apart."""
    tree = ast.parse(source)
    skipped = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped.update(id(part) for part in node.values)
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
            )
        elif isinstance(node, ast.Constant) and id(node) not in skipped:
            yield str(node.value)


def test_the_topic_rule_finds_topics() -> None:
    source = "t = 'shardline/home/plan'\nf = f'{base}/device/{name}/status'\ng = 'metrics/#'\n"
    assert [topic_like(text) for text in strings(source)] == [True, True, True]
    assert not any(map(topic_like, ("shardline/1", "shards/built", "docs/topics.md", "a/b", "in")))


@each_file
def test_topics_are_written_in_one_file_only(file: Path) -> None:
    if name_of(file) == "contract/topics.py":
        assert any(map(topic_like, strings(file.read_text())))
        return
    assert [text for text in strings(file.read_text()) if topic_like(text)] == []


@each_file
def test_no_file_is_longer_than_four_hundred_lines(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= MAX_LINES


@each_file
def test_every_file_says_what_it_is_for(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text()))


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("stage.agent", ["torch", "torchvision", "onnx", "client", "planner", "typer"]),
        ("stage.engines.onnx_runtime", ["torch", "torchvision", "onnx", "client", "planner"]),
        ("shardline.app", ["torch", "torchvision", "onnx", "onnxruntime", "stage", "planner"]),
        ("shardline.commands.show", ["torch", "onnx", "onnxruntime", "jinja2"]),
        ("shardline.top.run", ["textual", "torch", "onnx", "onnxruntime", "planner", "stage"]),
        ("shardline.verdict_table", ["torch", "onnx", "onnxruntime", "jinja2"]),
        ("shardline.commands.dashboard", ["starlette", "uvicorn", "client.watch"]),
        ("client.dashboard.app", ["torch", "onnx", "onnxruntime", "stage", "planner", "PIL"]),
        ("shardline.commands.stage", ["torch", "torchvision", "onnx", "onnxruntime", "planner"]),
        ("shardline.commands.generate", ["tokenizers", "jinja2", "torch", "onnxruntime"]),
        ("shardline.commands.serve", ["starlette", "uvicorn", "tokenizers"]),
        ("client.generation.pipeline", ["torch", "onnx", "onnxruntime", "tokenizers", "jinja2"]),
        ("client.pipeline", ["torch", "torchvision", "onnx", "onnxruntime", "stage", "planner"]),
        ("contract.plan", ["torch", "onnx", "onnxruntime", "paho", "broker", "stage"]),
    ],
)
def test_a_process_loads_only_what_it_needs(module: str, absent: list[str]) -> None:
    code = f"import {module}, sys; print(*[m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
