"""Token ids as pieces of text, one a token, that together are exactly the text, with nothing in it to obey."""

from collections.abc import Callable, Sequence

from rollout.shown import visible
from rollout.viewer.recorded import ViewerError

Decode = Callable[[Sequence[int]], str]
"""The exact text of ids, tags included: `Tokens.decode`."""
BROKEN = "\ufffd"
"""What decoders write for a part of a character."""
LONGEST = 8
"""Tokens that may make up one character before it is taken for broken."""


def shown_lines(text: str) -> str:
    r"""The text with whatever is not printable written out, except for line ends and tabs.

    >>> shown_lines("a\x1b[2J\n\tb")
    'a\\x1b[2J\n\tb'
    """
    return text if text.isprintable() else "".join(c if c in "\n\t" else visible(c) for c in text)


def pieces(ids: Sequence[int], decode: Decode, known: dict[int, str]) -> list[str]:
    """The text of each token, "" where a later one completes its character. Joined they are `decode(ids)`.

    `known` caches what single tokens decode to. Where a decoder's texts do not add up, the first token has all.
    """
    for token in ids:
        if token not in known:
            known[token] = decode([token])
    alone, whole = [known[token] for token in ids], decode(ids)
    if "".join(alone) == whole and BROKEN not in whole:
        return alone
    found = _grown(ids, decode)
    return found if "".join(found) == whole else [whole, *[""] * (len(ids) - 1)]


def _grown(ids: Sequence[int], decode: Decode) -> list[str]:
    """What each token adds to the text of those shortly before it."""
    found: list[str] = []
    before = done = 0  # the text of ids[before:done] is known to end in a whole character
    for end in range(1, len(ids) + 1):
        old, new = decode(ids[before:done]), decode(ids[before:end])
        if new.endswith(BROKEN) and end < len(ids) and end - done < LONGEST:
            found.append("")
            continue
        found.append(new[len(old) :])
        before, done = done, end
    return found


class Vocabulary:
    """Numbers for (token id, its text), each pair once. Without a decoder the ids themselves are the text."""

    def __init__(self, decode: Decode | None, size: int | None = None) -> None:
        """`size`: ids at or above it are not the tokenizer's."""
        self._decode, self._size = decode, size
        self._numbers: dict[tuple[int, str], int] = {}
        self._alone: dict[int, str] = {}

    def numbers(self, ids: Sequence[int]) -> list[int]:
        """Of each token. Raises ViewerError for an id that the tokenizer does not have."""
        if self._decode is None:
            texts = [f"{token} " for token in ids]
        else:
            if odd := [token for token in ids if token < 0 or (self._size is not None and token >= self._size)]:
                raise ViewerError(f"the tokenizer has no token {odd[0]}: give the run's own with --tokenizer")
            texts = pieces(ids, self._decode, self._alone)
        return [self._numbers.setdefault(pair, len(self._numbers)) for pair in zip(ids, texts, strict=True)]

    @property
    def ids(self) -> list[int]:
        return [token for token, _ in self._numbers]

    @property
    def texts(self) -> list[str]:
        """Fit to be shown."""
        return [shown_lines(text) for _, text in self._numbers]
