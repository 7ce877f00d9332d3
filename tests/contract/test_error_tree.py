"""The tree of errors in the module's docstring is the tree in the code, exit codes included."""

import inspect
import re

import pytest

from contract import errors
from contract.errors import ExitCode, ShardlineError

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, ShardlineError)
]
DRAWN = [
    (len(match[1]), match[2], int(match[3]))
    for match in re.finditer(r"^    ([├└│─ ]*)(\w+Error) +(\d+) ", errors.__doc__ or "", re.M)
]


def drawn_parents() -> dict[str, str | None]:
    parents: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for indent, name, _code in DRAWN:
        while above and above[-1][0] >= indent:
            above.pop()
        parents[name] = above[-1][1] if above else None
        above.append((indent, name))
    return parents


def test_every_class_is_drawn_once_and_nothing_else_is() -> None:
    assert sorted(name for _, name, _ in DRAWN) == sorted(cls.__name__ for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_class_stands_in_the_tree_where_the_code_has_it(cls: type[ShardlineError]) -> None:
    parent = None if cls is ShardlineError else cls.__base__.__name__  # type: ignore[union-attr]
    assert drawn_parents()[cls.__name__] == parent


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_class_ends_the_command_with_the_code_that_the_tree_says(
    cls: type[ShardlineError],
) -> None:
    codes = {name: code for _, name, code in DRAWN}
    assert isinstance(cls.exit_code, ExitCode)
    assert codes[cls.__name__] == cls.exit_code
    assert cls.exit_code not in (ExitCode.OK, ExitCode.INTERRUPTED)


def test_exit_codes_are_frozen() -> None:
    """Scripts compare with them."""
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "FAILURE": 1,
        "SETTINGS": 2,
        "BROKER": 3,
        "PLAN_OR_SHARD": 4,
        "ENGINE": 5,
        "MODEL": 6,
        "VERIFICATION": 7,
        "DELIVERY": 8,
        "WIRE_FORMAT": 9,
        "ENVIRONMENT": 10,
        "JOURNAL": 11,
        "INTERRUPTED": 130,
    }


def test_every_class_says_what_it_means() -> None:
    assert all(cls.__doc__ for cls in CLASSES)


def test_errors_with_parts_say_expected_actual_and_what_to_do() -> None:
    too_large = errors.MessageTooLargeError("a/topic", 2_000, 1_000)
    assert re.search("a/topic.*2,000.*1,000.*smaller batch", str(too_large))
    mismatch = errors.PlanMismatchError("here", "aaaa", "bbbb", "copy it")
    assert str(mismatch) == "here: expected plan aaaa, got plan bbbb; copy it"
    changed = errors.ShardHashMismatchError("w.safetensors", "a" * 64, "b" * 64)
    assert re.search("w.safetensors.*aaaa.*bbbb.*copy it again", str(changed))
    assert "stage folder" in str(errors.ShardMissingError("w.safetensors"))
