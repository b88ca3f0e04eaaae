"""The one base of errors that a user can mend, and the word that was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """One line that says what to do; `scripts/train.py` prints it alone and exits with 2. Other errors are ours."""


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word that was probably meant: "rh0" among "cap", "rho" gives "rho"; None when nothing is near."""
    near = get_close_matches(word, list(words), n=1, cutoff=0.5)
    return near[0] if near else None


def shortened(message: object, most: int = 110) -> str:
    """What another program said, on one line of at most `most` characters.

    >>> shortened("Expecting value:\\n  line 1 column 1", 24)
    'Expecting value: line ..'
    """
    text = " ".join(str(message).split())
    return text if len(text) <= most else f"{text[: most - 3].rstrip()} .."
