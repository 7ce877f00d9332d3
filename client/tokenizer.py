"""Text to tokens and back, by the plan folder's `tokenizer/`; chat as the model's template has it.

The folder is a transformers one: `tokenizer.json`, and for chat `chat_template.jinja`, or the
template in `tokenizer_config.json` or `chat_template.json`. A template is a program
that whoever made the model wrote: it runs in jinja2's sandbox.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from contract.errors import PromptError, PromptTooLongError, SettingsError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
OLD_TEMPLATE_FILE = "chat_template.json"
MAX_FILE_BYTES = 64_000_000
DEAR_CHARACTERS = 100_000
"""Shorter texts are encoded whatever they hold: of some tokenizers one token may stand for more
characters than any in their vocabulary has (spaces that are folded, runs of the unknown)."""
CONTEXT_TOKENS = 6
"""Of a prompt's end, which tell how its continuation is written: a tokenizer may leave out the
first space of a text."""

Message = Mapping[str, Any]
"""One turn of a dialogue: ``role`` and ``content``."""


class TextTokenizer:
    """The tokenizer of one plan. May be used from several threads."""

    def __init__(self, folder: Path, expected_sha256: str = "") -> None:
        """Read the folder; ``expected_sha256`` is what the plan says of `tokenizer.json`.

        Raises:
            SettingsError: it is not there, no tokenizer, or not the plan's.
        """
        file = folder / TOKENIZER_FILE
        content = _read(file)
        if content is None:
            raise SettingsError(
                f"{file}: no such file; give the folder that `shardline plan` has put beside the "
                "plan, or the model's own, with --tokenizer DIR"
            )
        actual = hashlib.sha256(content).hexdigest()
        if expected_sha256 and actual != expected_sha256:
            raise SettingsError(
                f"{file}: expected sha256 {expected_sha256[:16]}…, got {actual[:16]}…; it is "
                "another model's tokenizer: give the folder of the running plan with --tokenizer"
            )
        try:
            self._tokenizer = Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises no other
            raise SettingsError(f"{file}: no tokenizer that can be read ({error})") from error
        # They serve training: a prompt is neither filled up nor cut off unasked.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._longest = max(map(len, self._tokenizer.get_vocab()), default=1)
        self._folder = folder
        config = _read_config(folder / CONFIG_FILE)
        named = _read_config(folder / SPECIAL_TOKENS_FILE)
        self._special = {
            name: _text_of(config.get(name)) or _text_of(named.get(name))
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        }
        self._template = _chat_template(folder, config)

    @property
    def can_chat(self) -> bool:
        """Whether the model came with a chat template."""
        return self._template is not None

    def encode(self, text: str, at_most: int | None = None) -> list[int]:
        """A text's tokens, with what this tokenizer puts before every text.

        ``at_most``: tokens that there is room for. To find the tokens of a long text takes seconds
        and hundreds of times its memory: what cannot fit by its length alone is refused before.

        Raises:
            PromptTooLongError: it has more characters than so many tokens stand for.
            PromptError: it is no text that UTF-8 can say.
        """
        return self._encode(text, at_most, add_special_tokens=True)

    def encode_chat(self, messages: Sequence[Message], at_most: int | None = None) -> list[int]:
        """A dialogue's tokens, up to where the model's turn begins. ``at_most``: see `encode`.

        Raises:
            SettingsError: the model has no chat template.
            PromptError: the template refuses these messages.
            PromptError, PromptTooLongError: see :meth:`encode`.
        """
        return self._encode(self.render_chat(messages), at_most, add_special_tokens=False)

    def _encode(self, text: str, at_most: int | None, *, add_special_tokens: bool) -> list[int]:
        if at_most is not None and len(text) > max(at_most * self._longest, DEAR_CHARACTERS):
            raise PromptTooLongError(
                f"the prompt has {len(text):,} characters: this plan has room for {at_most:,} "
                f"tokens, of at most {self._longest:,} characters each; shorten it"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"character {error.start} of the prompt is half of a surrogate pair: expected a "
                "text that UTF-8 can say"
            ) from error
        with _panics():
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def render_chat(self, messages: Sequence[Message]) -> str:
        """A dialogue as the model was trained to read it.

        Raises:
            SettingsError, PromptError: see :meth:`encode_chat`.
        """
        if self._template is None:
            raise SettingsError(
                f"{self._folder}: neither {TEMPLATE_FILE} nor a chat_template in {CONFIG_FILE} or "
                f"{OLD_TEMPLATE_FILE}: this model was not trained for dialogue; give it a text to "
                "go on with"
            )
        try:
            template = _environment().from_string(self._template)
            return template.render(messages=messages, add_generation_prompt=True, **self._special)
        except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise PromptError(f"the chat template refuses these messages: {error}") from error

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, without special ones.

        Raises:
            PromptError: the tokenizer fails at them.
        """
        with _panics():
            return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))


class TextStream:
    """The text of a sequence as its tokens come: never half a character, never a wrong space.

    What a token adds is told by two decodings, with it and without, since the text of a token
    depends on those before it; what ends in U+FFFD is held back, since the rest of that character
    may come with the next token. As vLLM (detokenizer_utils.detokenize_incrementally) and
    text-generation-inference (Model.decode_token) do.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-CONTEXT_TOKENS:])
        self._read = len(self._ids)

    def add(self, token_id: int) -> str:
        """The text that this token completes; often one word, sometimes none."""
        self._ids.append(token_id)
        text = self._new_text()
        if not text or text.endswith("\ufffd"):
            return ""
        # What was told stays as the beginning of the next decodings.
        self._ids, self._read = self._ids[self._read :], len(self._ids) - self._read
        return text

    def finish(self) -> str:
        """What is held back: the sequence has ended, and nothing completes it."""
        text = self._new_text()
        self._read = len(self._ids)
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._ids[: self._read])
        return self._tokenizer.decode(self._ids)[len(before) :]


@contextmanager
def _panics() -> Iterator[None]:
    """A panic of the library is no Exception: it would pass by whoever catches those, and end more
    than the text that has met with it."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise PromptError(f"the tokenizer fails at this text: {error!s:.200}") from error


def _read(file: Path) -> bytes | None:
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


def _read_config(file: Path) -> Mapping[str, Any]:
    content = _read(file)
    if content is None:
        return {}
    try:
        config = json.loads(content)
    except ValueError as error:
        raise SettingsError(f"{file}: no JSON ({error})") from error
    if not isinstance(config, dict):
        raise SettingsError(f"{file}: expected a JSON object")
    return config


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The template of its own file, else of the config, else of the file that was once its own."""
    content = _read(folder / TEMPLATE_FILE)
    if content is not None:
        return content.decode(errors="replace")
    return _template_in(config) or _template_in(_read_config(folder / OLD_TEMPLATE_FILE))


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


def _environment() -> ImmutableSandboxedEnvironment:
    """What templates expect of their surroundings, as transformers gives it to them
    (utils/chat_template_utils.py)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
