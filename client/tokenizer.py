"""Text to tokens and back, by the tokenizer in the plan's folder `tokenizer/`."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from client.chat_template import ChatTemplate, Message
from client.tokenizer_folder import (
    CONFIG_FILE,
    OLD_TEMPLATE_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    find_template,
    read_file,
    special_tokens,
)
from contract.errors import PromptError, PromptTooLongError, SettingsError

log = logging.getLogger(__name__)
DEAR_CHARACTERS = 100_000
"""Shorter texts are encoded whatever they hold: of some tokenizers one token may stand for more
characters than any in their vocabulary has (spaces that are folded, runs of the unknown)."""
CONTEXT_TOKENS = 6
"""Of a prompt's end, which tell how its continuation is written: a tokenizer may leave out the
first space of a text."""
HELD_TOKENS = 16
"""Held back at most, for the rest of a character: each further token costs all of them anew."""
HALF_BYTES = 3
"""A character that is not whole has at most so many bytes, each of which may be one U+FFFD."""


class TextTokenizer:
    """The tokenizer of one plan. May be used from several threads."""

    def __init__(self, folder: Path, expected_sha256: str = "") -> None:
        """Read the folder; ``expected_sha256`` is what the plan says of `tokenizer.json`.

        Raises:
            SettingsError: it is not there, no tokenizer, or not the plan's; or a config beside it
                is no JSON. A chat template that is none is logged: it harms no text.
        """
        file = folder / TOKENIZER_FILE
        content = read_file(file)
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
        self._template: ChatTemplate | None = None
        self._why_no_chat = (
            f"{folder}: neither {TEMPLATE_FILE} nor a chat_template in {CONFIG_FILE} or "
            f"{OLD_TEMPLATE_FILE}: this model was not trained for dialogue; give it a text to go "
            "on with"
        )
        named, source = special_tokens(folder), find_template(folder)
        if source is not None:
            try:
                self._template = ChatTemplate(source, named)
            except SettingsError as error:
                log.warning("%s", error)
                self._why_no_chat = str(error)

    @property
    def can_chat(self) -> bool:
        """Whether the model came with a chat template that can be used."""
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
            SettingsError: the model has no chat template, or none that can be used.
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
            raise SettingsError(self._why_no_chat)
        return self._template.render(messages)

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
    text-generation-inference (Model.decode_token) do. What would be held back without end, as
    bytes that are no character, is told all the same, but for what may still become one.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-CONTEXT_TOKENS:])
        self._read = len(self._ids)
        self._untold = 0
        """Characters at the end of those read that were not told yet."""

    def add(self, token_id: int) -> str:
        """The text that this token completes; often one word, sometimes none."""
        self._ids.append(token_id)
        text = self._new_text()
        is_whole = bool(text) and not text.endswith("\ufffd")
        if not is_whole and len(self._ids) - self._read <= HELD_TOKENS:
            return ""
        if not text:  # special ones; those before them tell how the text goes on
            del self._ids[self._read :]
            return ""
        # What was told stays as the beginning of the next decodings.
        self._ids, self._read = self._ids[self._read :], len(self._ids) - self._read
        self._untold = 0 if is_whole else min(self._half_character(), len(text))
        return text[: len(text) - self._untold]

    def finish(self) -> str:
        """What is held back: the sequence has ended, and nothing completes it."""
        text = self._new_text()
        self._read, self._untold = len(self._ids), 0
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._ids[: self._read])
        return self._tokenizer.decode(self._ids)[len(before) - self._untold :]

    def _half_character(self) -> int:
        """Characters at the end of those read that the next tokens may turn into another."""
        end = self._tokenizer.decode(self._ids[: self._read])[-HALF_BYTES:]
        return len(end) - len(end.rstrip("\ufffd"))


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
