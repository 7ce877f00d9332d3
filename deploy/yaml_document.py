"""Reads a YAML document into a model, and says of every error the line, the field, what was
expected, what came.

Knows YAML and pydantic's errors; what a document must hold is said by the model.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from contract.errors import SettingsError
from contract.frozen import FrozenModel
from deploy.fields import AT_PLACE, Place

MAX_FILE_BYTES = 1024 * 1024

_Model = TypeVar("_Model", bound=FrozenModel)


class Document(NamedTuple):
    """A document as nodes, which know their lines, and as what it says.

    ``where`` is what errors call it, ``page`` where they send a reader.
    """

    node: yaml.Node | None
    content: dict[object, object]
    where: str
    page: str

    def read_as(self, model: type[_Model]) -> _Model:
        """The model that the document describes.

        Raises:
            SettingsError: it does not; with the line, the field and a remedy.
        """
        try:
            # By way of JSON: a list is then a tuple, a text a word of an enumeration, and nothing
            # else.
            return model.model_validate_json(json.dumps(self.content, default=str))
        except TypeError as error:
            raise SettingsError(
                f"{self.where}: a field's name is no text ({error}); write it in quotes"
            ) from error
        except ValidationError as error:
            raise SettingsError(_explain(error.errors()[0], self)) from error
        except ValueError as error:  # a number of thousands of digits, written in hexadecimal
            raise SettingsError(
                f"{self.where}: a value cannot be read ({error!s:.200}); see {self.page}"
            ) from error


def read_text(path: Path, remedy: str) -> str:
    """The text of a file; ``remedy`` is what to do if there is none.

    Raises:
        SettingsError: the file cannot be read, or is too large to be meant.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise SettingsError(
                f"{path}: more than {MAX_FILE_BYTES:,} bytes; such a file has a few thousand"
            )
        return content.decode()
    except OSError as error:
        raise SettingsError(f"{path}: cannot read it ({error.strerror}); {remedy}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is no UTF-8 text; save it as UTF-8") from error


def parse_document(text: str, where: str, page: str, remedy: str) -> Document:
    """The document that ``text`` is; ``remedy`` is what to do if it holds no fields at all.

    Raises:
        SettingsError: not YAML, an alias in it, a field given twice, or no fields.
    """
    node, content = _read(text, where, page)
    _refuse_duplicates(node, where)
    if not isinstance(content, dict):
        raise SettingsError(
            f"{where} line 1: expected fields such as `devices:` and `broker:`, got "
            f"{_shown(content)}; {remedy}"
        )
    return Document(node, content, where, page)


def _read(text: str, where: str, page: str) -> tuple[yaml.Node | None, object]:
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):
                raise SettingsError(
                    f"{where} line {token.start_mark.line + 1}: an alias (*{token.value}) cannot "
                    "be used here; write out what it stands for"
                )
        node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
        document: object = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = (error.problem or "not valid").removesuffix(":")
        raise SettingsError(
            f"{where}{line}: this is no YAML ({what}); check indentation, colons and quotes there"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingsError(
            f"{where}: this is no YAML that can be used ({error!s:.200}); see {page} for an example"
        ) from error
    return node, document


def _refuse_duplicates(node: yaml.Node | None, where: str) -> None:
    """YAML readers take the last of two equal fields without a word.

    Raises:
        SettingsError: a field is given twice.
    """
    for mapping in _mappings(node):
        seen: dict[str, int] = {}
        for key, _ in mapping.value:
            line = key.start_mark.line + 1
            if str(key.value) in seen:
                raise SettingsError(
                    f"{where} line {line}: `{key.value}` is given a second time (first in line "
                    f"{seen[key.value]}); remove one of them"
                )
            seen[str(key.value)] = line


def _mappings(node: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            yield node
            waiting += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _explain(error: ErrorDetails, document: Document) -> str:
    context = error.get("ctx", {})
    place = tuple(context["place"]) if error["type"] == AT_PLACE else error["loc"]
    at = f"{document.where} line {_line_of(document.node, place)}"
    field = ".".join(map(str, place))
    got = _shown(error["input"])
    page = document.page
    match error["type"]:
        case "missing":
            return f"{at}, {field}: this field is missing; add it ({page} has an example)"
        case "extra_forbidden":
            return f"{at}, {field}: there is no such field; correct its name or remove it"
        case "value_error" | "at_place":
            return f"{at}, {field}: {error['msg'].removeprefix('Value error, ')}"
        case "string_type":
            return f"{at}, {field}: expected a text, got {got}; write it in quotes"
        case "enum":
            expected = context.get("expected", "a known word")
            return f"{at}, {field}: expected one of {expected}, got {got}; choose one of these"
        case _:
            return f"{at}, {field}: {error['msg']}, got {got}; correct it ({page})"


def _line_of(node: yaml.Node | None, place: Place) -> int:
    """Line of the innermost part of ``place`` that the file has."""
    line = node.start_mark.line if node is not None else 0
    for step in place:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == step), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            if step >= len(node.value):
                break
            node = node.value[step]
            line = node.start_mark.line
        else:
            break
    return line + 1


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "fields"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else f"{value!r:.60}"
