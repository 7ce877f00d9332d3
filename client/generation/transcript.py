"""The tokens of a batch's sequences by position, whichever attempt brought them. Pure.

Several attempts of a batch may be alive at once, and each sends every token from where it began:
the first to bring a position counts, the others are compared with it. An attempt is heard from one
position to the next, so that no token counts that follows upon others than those of the transcript.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from contract.decoder import Finish, Sampling

Ids = npt.NDArray[np.int64]


class Column(NamedTuple):
    """One position of all rows. ``token_ids``: None for a row that had ended before."""

    position: int
    token_ids: tuple[int | None, ...]
    finish: tuple[Finish, ...]


class Taken(NamedTuple):
    """What a message brought: new columns, in order, or none.

    ``is_duplicate``: it repeats what is there. ``near_ties``: rows in which it repeats something
    else. ``is_ahead``: what lies before it has not come.
    """

    columns: tuple[Column, ...] = ()
    is_duplicate: bool = False
    near_ties: int = 0
    is_ahead: bool = False


@dataclass(slots=True)
class _Heard:
    """One attempt: the position that it has to bring next, and what came before its turn.

    ``is_diverged``: it has chosen another token than the transcript has; what follows is of another
    text.
    """

    next_position: int
    ahead: dict[int, tuple[tuple[int, ...], tuple[Finish, ...]]] = field(default_factory=dict)
    is_diverged: bool = False


class Transcript:
    """What a batch of sequences at the same position holds so far, prompts included."""

    def __init__(self, prompts: Ids, sampling: Sequence[Sampling]) -> None:
        """``prompts``: int64 (rows, tokens); one ``sampling`` for each row."""
        self._prompts, self._sampling = prompts, tuple(sampling)
        self._columns: list[tuple[int, ...]] = []
        self._finish = [Finish.NOT_YET] * len(prompts)
        self._ends: list[int | None] = [None] * len(prompts)
        self._heard: dict[int, _Heard] = {}
        self.near_ties = 0
        """Rows in which another attempt chose another token."""

    @property
    def rows(self) -> int:
        """How many sequences."""
        return len(self._prompts)

    @property
    def length(self) -> int:
        """Tokens of each sequence: the position of the next one."""
        return len(self._prompts[0]) + len(self._columns)

    @property
    def has_tokens(self) -> bool:
        """Whether any came beside the prompts."""
        return bool(self._columns)

    @property
    def is_over(self) -> bool:
        """Whether every sequence has ended, or was stopped."""
        return None not in self._ends

    def stop(self, rows: Sequence[int] | None = None) -> None:
        """Want no more of these rows; of all for None."""
        for row in range(self.rows) if rows is None else rows:
            if self._ends[row] is None:
                self._ends[row] = self.length

    def begin(self, attempt: int) -> None:
        """A new attempt goes on from here."""
        self._heard[attempt] = _Heard(self.length)

    def is_diverged(self, attempt: int) -> bool:
        """Whether nothing that this attempt may still bring can count."""
        return self._heard[attempt].is_diverged

    def ids(self) -> Ids:
        """All tokens, int64 (rows, length): what another attempt is given."""
        if not self._columns:
            return self._prompts
        return np.concatenate([self._prompts, np.array(self._columns, np.int64).T], axis=1)

    def sampling(self) -> tuple[Sampling, ...]:
        """How another attempt has to choose: rows that have ended have all that they may have."""
        return tuple(
            row if end is None else row._replace(max_position=self.length)
            for row, end in zip(self._sampling, self._ends, strict=True)
        )

    def take(
        self, attempt: int, position: int, token_ids: tuple[int, ...], finish: tuple[Finish, ...]
    ) -> Taken:
        """Take in what an attempt has chosen for a position, one token for each row."""
        heard = self._heard[attempt]
        if heard.is_diverged or position < heard.next_position:
            return Taken(is_duplicate=True)
        if position > heard.next_position:
            is_duplicate = position in heard.ahead
            heard.ahead[position] = (token_ids, finish)
            return Taken(is_duplicate=is_duplicate, is_ahead=not is_duplicate)
        heard.ahead[position] = (token_ids, finish)
        columns, near_ties, repeated = [], 0, False
        while (brought := heard.ahead.pop(heard.next_position, None)) is not None:
            if heard.next_position < self.length:
                near_ties += self._differing(heard.next_position, brought[0])
                repeated = True
                if near_ties:
                    heard.is_diverged = True
                    heard.ahead.clear()
                    break
            else:
                columns.append(self._append(*brought))
            heard.next_position += 1
        self.near_ties += near_ties
        return Taken(tuple(columns), repeated, near_ties)

    def _differing(self, position: int, token_ids: tuple[int, ...]) -> int:
        known = self._columns[position - self._prompts.shape[1]]
        return sum(
            (end is None or position < end) and ours != theirs
            for ours, theirs, end in zip(known, token_ids, self._ends, strict=True)
        )

    def _append(self, token_ids: tuple[int, ...], finish: tuple[Finish, ...]) -> Column:
        position = self.length
        live = [end is None for end in self._ends]
        self._columns.append(token_ids)
        for row, why in enumerate(finish):
            if why and self._finish[row] is Finish.NOT_YET:
                self._finish[row] = why
            if why and live[row]:
                self._ends[row] = self.length
        return Column(
            position,
            tuple(token if lives else None for token, lives in zip(token_ids, live, strict=True)),
            tuple(
                why if lives else Finish.NOT_YET for why, lives in zip(finish, live, strict=True)
            ),
        )
