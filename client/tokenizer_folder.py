"""What a plan's `tokenizer/` holds, read within bounds: its files, special tokens, chat template.

The folder is a transformers one: `tokenizer.json`, and for chat `chat_template.jinja`, or the
template in `tokenizer_config.json` or `chat_template.json`. Nothing here knows what a template is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from contract.errors import SettingsError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
OLD_TEMPLATE_FILE = "chat_template.json"
MAX_FILE_BYTES = 64_000_000


class TemplateSource(NamedTuple):
    """A chat template as it was written, and the file that it stands in."""

    file: Path
    text: str


def read_file(file: Path) -> bytes | None:
    """What ``file`` holds; None where there is none.

    Raises:
        SettingsError: it cannot be read, or is too large.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(f"{file}: cannot read it ({error.strerror})") from error
    if len(content) > MAX_FILE_BYTES:
        raise SettingsError(f"{file}: more than {MAX_FILE_BYTES:,} bytes")
    return content


def special_tokens(folder: Path) -> dict[str, str]:
    """The tokens that templates know by name.

    Raises:
        SettingsError: see :func:`read_file`; or a file is no JSON object.
    """
    config = _read_config(folder / CONFIG_FILE)
    named = _read_config(folder / SPECIAL_TOKENS_FILE)
    return {
        name: _text_of(config.get(name)) or _text_of(named.get(name))
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
    }


def find_template(folder: Path) -> TemplateSource | None:
    """The template of its own file, else of the config, else of the file that was once its own.

    Raises:
        SettingsError: see :func:`special_tokens`.
    """
    content = read_file(folder / TEMPLATE_FILE)
    if content is not None:
        return TemplateSource(folder / TEMPLATE_FILE, content.decode(errors="replace"))
    for name in (CONFIG_FILE, OLD_TEMPLATE_FILE):
        if found := _template_in(_read_config(folder / name)):
            return TemplateSource(folder / name, found)
    return None


def _read_config(file: Path) -> Mapping[str, Any]:
    content = read_file(file)
    if content is None:
        return {}
    try:
        config = json.loads(content)
    except ValueError as error:
        raise SettingsError(f"{file}: no JSON ({error})") from error
    if not isinstance(config, dict):
        raise SettingsError(f"{file}: expected a JSON object")
    return config


def _template_in(config: Mapping[str, Any]) -> str | None:
    """A text, or several by name."""
    found = config.get("chat_template")
    if isinstance(found, list):
        entries = (entry for entry in found if isinstance(entry, dict))
        found = next((e.get("template") for e in entries if e.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _text_of(token: object) -> str:
    """A special token as the config has it: a text, or an object with one."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
