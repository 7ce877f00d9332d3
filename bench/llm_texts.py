"""What the sides of `bench.llm` have written: whether all of it is the same. Pure.

A side writes as many texts as it has sequences, and all of them anew each time that it has its
turn. The first sequence is the same for all sides, so it is held against what one process wrote
when it had its first turn; the others are held against those that one process wrote as a batch.
"""

from collections.abc import Collection

Rows = list[list[int]]
Texts = dict[tuple[str, int], list[Rows]]
"""What a side has written behind how many tokens: for each of its turns a list for each row."""


def expected(texts: Texts, alone: str, together: str, context: int) -> Rows:
    """The rows that all sides should have written behind so many tokens."""
    first = texts[alone, context][0][:1]
    return first + texts[together, context][0][1:] if (together, context) in texts else first


def others(texts: Texts, alone: str, together: str, left_out: Collection[str] = ()) -> list[str]:
    """Rows that are not those that one process has written, and in how many of a side's turns.

    Args:
        texts: of all sides.
        alone: the process that decodes the first sequence alone.
        together: the one that decodes all sequences as a batch, where there is one.
        left_out: sides that may write something else.
    """
    found = []
    for (name, context), turns in texts.items():
        if name in left_out:
            continue
        wanted = expected(texts, alone, together, context)
        rows = max(map(len, turns))
        for row in range(rows):
            unlike = sum(turn[row : row + 1] != wanted[row : row + 1] for turn in turns)
            if unlike:
                found.append(
                    f"{name} behind {context} tokens, row {row} in {unlike} of {len(turns)} turns"
                )
    return found
