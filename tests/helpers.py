"""Small things that several tests share."""

from apr_train.model import character_tokenizer
from rollout.dialects import dialect_class
from rollout.tokens import Tokens, register_tags


def toy_tokens(dialect: str = "threadweaver") -> Tokens:
    """The character tokenizer with a dialect's tags."""
    tokenizer = character_tokenizer()
    register_tags(tokenizer, dialect_class(dialect).tags())
    return Tokens(tokenizer)
