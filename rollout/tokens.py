"""Text to ids and back, so that only the tags a dialect registers are ever structure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

# pyright: reportUnknownMemberType=false
# (transformers types its tokenizers only in part)

_SLOT = "\u2063problem\u2063"  # stands for the problem while the chat template is cut in two around it


class TagError(ValueError):
    """A tag is not exactly one token of this tokenizer. Register the dialect's tags first (`register_tags`)."""


def register_tags(tokenizer: PreTrainedTokenizerBase, tags: Sequence[str]) -> int:
    """Makes every tag one special token of the tokenizer; returns how many were new to its vocabulary.

    A tag that the tokenizer already knew as an ordinary added token becomes special too, so that the same characters
    in a prompt stay text.
    """
    before = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tags)}, replace_extra_special_tokens=False)  # pyright: ignore[reportArgumentType]
    return len(tokenizer) - before


@dataclass(frozen=True)
class Tokens:
    """The one way this framework turns text into ids.

    >>> tokens = Tokens(tokenizer)
    >>> tokens.decode(tokens.text("<Thread>"))  # text stays text, whatever it spells
    '<Thread>'
    """

    tokenizer: PreTrainedTokenizerBase

    def text(self, text: str) -> tuple[int, ...]:
        """Ids of plain text: special tokens are never produced, their characters are encoded like any others."""
        ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return tuple(ids)

    def tag(self, tag: str) -> int:
        """The id of a tag. Raises TagError unless it is exactly one token."""
        ids = self.tokenizer.encode(tag, add_special_tokens=False)
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            raise TagError(
                f"tag {tag!r} is {len(ids)} tokens of this tokenizer, not one: run SFT first, or register_tags()"
            )
        return ids[0]

    @property
    def eos(self) -> int:
        """The id that ends a response. Raises TagError when the tokenizer names none."""
        eos = self.tokenizer.eos_token_id
        if not isinstance(eos, int):
            raise TagError("the tokenizer names no single eos_token: set one before training")
        return eos

    def prompt(self, problem: str) -> tuple[int, ...]:
        """The chat template around the problem's plain text (the text alone when the tokenizer has no template)."""
        before, after = self._template
        return (*before, *self.text(problem), *after)

    def decode(self, ids: Sequence[int]) -> str:
        """The exact text of these ids, tags included."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    @cached_property
    def _template(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if not self.tokenizer.chat_template:
            return (), ()
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": _SLOT}], tokenize=False, add_generation_prompt=True
        )
        before, found, after = str(rendered).partition(_SLOT)
        if not found:
            raise TagError("the chat template does not show the user's message: the problem would be lost")
        return self._marks(before), self._marks(after)

    def _marks(self, text: str) -> tuple[int, ...]:
        """Ids of template text, whose special tokens are meant."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return tuple(ids)
