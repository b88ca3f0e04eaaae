"""What may be shown of a text that others wrote: one line, nothing a terminal would obey, no secret of this process."""

import os
import re
from collections.abc import Mapping

_SECRET_NAME = re.compile(r"(^|_)(API_?KEYS?|KEYS?|TOKENS?|SECRETS?|PASSWORDS?|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_SECRET_SHAPE = re.compile(r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{30,}|gh[pousr]_[A-Za-z0-9]{30,})\b")
_LOGIN = re.compile(r"(?<=://)[^/?#\s]*@")
"""What stands before the host of an address: `user:password@`, or a token alone."""
SHORTEST = 8
"""Characters. A shorter value is no secret, and replacing it everywhere would garble ordinary words."""


def visible(text: str) -> str:
    r"""The text with every character that is not printable written out, so that a terminal shows it and obeys none:
    escape sequences, other control characters, line ends, and marks that turn the writing direction.

    >>> visible("a\x1b[2Jb\n")
    'a\\x1b[2Jb\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def secret_in(text: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Why the text must not be written down: it holds the value of a secret variable, a token by its shape, or the
    login of an address. None where nothing is found. The answer does not repeat the secret.

    >>> secret_in("x-s3cret-s3cret", {"WANDB_API_KEY": "s3cret-s3cret"})
    'the value of WANDB_API_KEY'
    """
    for name, value in _secrets(environment):
        if value in text:
            return f"the value of {name}"
    if _LOGIN.search(text):
        return "user:password@ in an address"
    return "what looks like a token" if _SECRET_SHAPE.search(text) else None


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text without what `secret_in` finds.

    >>> redacted("GET https://me:pw@host/v1", {})
    'GET https://[redacted]@host/v1'
    """
    for name, value in _secrets(environment):
        text = text.replace(value, f"[{name}]")
    return _SECRET_SHAPE.sub("[redacted]", _LOGIN.sub("[redacted]@", text))


def one_line(message: object) -> str:
    """How an error or a notice is printed: on one line, without secrets, nothing in it obeyed."""
    return visible(" ".join(redacted(str(message)).split()))


def _secrets(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """(name, value) of the variables that are secret by their name, the longest value first: one may hold another."""
    found = [(n, v.strip()) for n, v in environment.items() if _SECRET_NAME.search(n) and len(v.strip()) >= SHORTEST]
    return sorted(found, key=lambda pair: -len(pair[1]))
