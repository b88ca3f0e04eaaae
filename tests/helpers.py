"""Small things that several tests share."""

from collections.abc import Callable

from apr_train.model import character_tokenizer
from rewards.verdict import Verdict
from rewards.verify.exact import TextVerifier
from rollout.dialects import dialect_class
from rollout.tokens import Tokens, register_tags


def toy_tokens(dialect: str = "threadweaver") -> Tokens:
    """The character tokenizer with a dialect's tags."""
    tokenizer = character_tokenizer()
    register_tags(tokenizer, dialect_class(dialect).tags())
    return Tokens(tokenizer)


class Judge(TextVerifier):
    """A verifier that says what a function does; its answers are what follows the reasoning."""

    def __init__(self, says: Callable[[str, str], Verdict]) -> None:
        self._says = says

    def __call__(self, response: str, reference: str) -> Verdict:
        return self._says(response, reference)
