"""What devices, plans and files say is shown, and neither the terminal nor rich obeys it."""

import io
import json
import logging
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from contract.errors import ShardError
from contract.plan import Plan, parse_plan
from shardline.console import PlainConsole, PlainFormatter
from shardline.plan_table import new_table, placement_table, stages_table
from tests.conftest import Run
from tests.tiny import make_tiny_plan

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m"


def shown(thing: object, **options: object) -> str:
    """What a colour terminal would be sent."""
    file = io.StringIO()
    console = PlainConsole(file=file, force_terminal=True, color_system="standard", width=120)
    console.print(thing, **options)  # type: ignore[arg-type]
    return file.getvalue()


def test_a_terminal_is_sent_rich_s_own_escapes_and_no_others() -> None:
    text = shown(Text(f"red{EVIL}", "red"))
    assert text == "\x1b[31mred\\x1b[2J\\x1b]0;owned\\x9b31m\x1b[0m\n"  # rich drops the bell
    table = Table("name")
    table.add_row(Text(EVIL))
    assert "\x1b[2J" not in shown(table)
    assert shown("two\nlines", markup=False) == "two\nlines\n"


def hostile_plan(folder: Path) -> Plan:
    """Names that are control characters and markup, one of which is not even closed."""
    text = make_tiny_plan(folder).to_json()
    document = json.loads(text)
    document["name"] = f"tiny{EVIL}[/nothing][blink]"
    document["topic_map"][0]["subscribes"] = f"x{EVIL}[link=file:///etc/passwd]y[/]"
    return parse_plan(json.dumps(document), "test")


def test_tables_of_a_plan_show_its_words_as_they_are(tmp_path: Path) -> None:
    plan = hostile_plan(tmp_path)
    for table in (stages_table(plan), placement_table(plan)):
        text = shown(table)
        assert "\x1b[2J" not in text
        assert "\x1b]0;" not in text
    assert "[/nothing][blink]" in shown(stages_table(plan))
    assert "[link=file:///etc/passwd]y[/]" in shown(placement_table(plan))
    titled = new_table("[red]title")
    titled.add_column("as wide as the title")
    assert "[red]title" in shown(titled)


def test_the_command_shows_a_hostile_plan_and_its_errors(tmp_path: Path, run: Run) -> None:
    plan = hostile_plan(tmp_path)
    file = tmp_path / "tiny" / "plan.json"
    file.write_text(plan.to_json())
    done = run("show", tmp_path / "tiny")
    assert done.code == 0, done.err
    assert "\x1b[2J" not in done.out + done.err
    assert "[/nothing]" in done.out
    document = json.loads(plan.to_json()) | {"batch_size": 0}
    document["model"]["input"]["kind"] = EVIL
    file.write_text(json.dumps({"name\x1b[2J": 1, **document}))
    done = run("show", tmp_path / "tiny")
    assert done.code == 4
    assert "\x1b" not in done.err
    assert r"\x1b[2J" in done.err


def test_a_log_line_is_one_line_and_a_traceback_keeps_its_lines() -> None:
    formatter = PlainFormatter("%(levelname)s %(message)s")
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "a%s", (f"{EVIL}\nERROR forged",), None)
    line = formatter.format(record)
    assert line == "ERROR a\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\nERROR forged"
    try:
        raise ShardError(f"told{EVIL}\nby a device")
    except ShardError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "given up", (), info)
    text = formatter.format(record)
    assert text.startswith("ERROR given up\nTraceback")
    assert "\x1b" not in text
    assert len(text.splitlines()) > 3


@pytest.mark.parametrize("word", ["%s%n%d", "{0.__class__}", "$(id)", "`id`"])
def test_words_that_formats_and_shells_know_are_only_words(word: str) -> None:
    formatter = PlainFormatter("%(message)s")
    assert formatter.format(logging.LogRecord("x", 30, "f", 1, "%s", (word,), None)) == word
