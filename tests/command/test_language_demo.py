"""`shardline demo` with the language model of this repository: real processes, checked."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import shardline.language_demo
from contract.errors import ExitCode
from tests.conftest import Done, Run

ROOT = Path(__file__).parents[2]
MODEL = f"hf:{ROOT / 'examples' / 'docs_model'}"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
WORD = re.compile(r"[A-Za-z]{3,}")


def words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def planned(folder: Path) -> object:
    """What the demo plans first, once for all: it takes most of its time."""
    demo = shardline.language_demo.Demo(MODEL, "demo-docs_model", folder, 3, "", 0)
    return shardline.language_demo._plan(demo)


@pytest.fixture
def demo(
    run: Run, folder: Path, planned: object, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """Runs the demo with that plan."""
    monkeypatch.setattr(shardline.language_demo, "_plan", lambda _demo: planned)
    return lambda *arguments: run("demo", "--model", MODEL, "--out", folder, *arguments)


def test_it_writes_in_the_words_of_these_pages_what_the_whole_model_writes(
    demo: Callable[..., Done],
) -> None:
    done = demo("--max-tokens", 80)
    assert done.code == 0, done.err
    assert "all of that holds" in done.out
    assert re.search(r"tokens\s+80 of 80 are those that the whole model chooses", done.out)
    assert re.search(r"80 tokens after a prompt of \d+.* tokens/s", done.out)
    assert "1 submitted = 1 delivered, 0 lost, 0 dead" in done.out
    assert [line.split()[0] for line in done.out.splitlines() if "█" in line] == ["0", "1", "2"]
    text = done.out.partition("\n\n stage")[0].partition("hf:docs_model in 3 stages")[0]
    assert text.startswith("## Why a stage")
    known = set(words("".join(page.read_text() for page in PAGES)))
    written = words(text)
    assert len(set(written)) > 10, text
    assert sum(word in known for word in written) > 0.8 * len(written), text


def test_another_text_than_the_whole_model_s_is_an_error(
    demo: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: one token is changed on its way to the comparison."""
    real = shardline.language_demo.write

    def write(*arguments: object) -> shardline.language_demo.Text:
        text = real(*arguments)  # type: ignore[arg-type]
        first, *rest = text.written
        return replace(text, written=((first + 1) % 1024, *rest))

    monkeypatch.setattr(shardline.language_demo, "write", write)
    done = demo("--max-tokens", 4)
    assert done.code == ExitCode.VERIFICATION
    assert "tokens are others than the whole model's" in done.err
    assert "all of that holds" not in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", MODEL, "--images", "x"), "--images is for image models"),
        (("--model", MODEL, "--weights", "random"), "--weights is for image models"),
        (("--model", MODEL, "--batch", 2), "--batch is for image models"),
        (("--model", MODEL, "--seed", 3), "--seed is for image models"),
        (("--prompt", "x"), "--prompt and --max-tokens are for language models"),
        (("--model", "hf:nowhere"), "no such directory"),
    ],
)
def test_what_means_nothing_is_refused(run: Run, arguments: tuple[object, ...], said: str) -> None:
    done = run("demo", *arguments)
    assert done.code != 0
    assert said in done.err
    assert "Traceback" not in done.err
