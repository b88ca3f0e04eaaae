"""Text to ids and back, so that only the tags a dialect registers are ever structure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from rollout.errors import UserError, shortened

# pyright: reportUnknownMemberType=false
# (transformers types its tokenizers only in part)

_SLOT = "\u2063problem\u2063"  # stands for the problem while the chat template is cut in two around it


class TagError(UserError, ValueError):
    """Text, tags or chat template do not fit the tokenizer: a tag is not one token, a character has none."""


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
        """Ids of plain text: special tokens are never produced, their characters are encoded like any others.

        Raises TagError for characters that the tokenizer would replace by its unknown token.
        """
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if self.tokenizer.unk_token_id is not None and self.tokenizer.unk_token_id in ids:
            raise TagError(f"this tokenizer cannot spell all of {text[:60]!r}: clean the text, or use a model that can")
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
        """The chat template around the problem's plain text; without one, the text after the bos, if any."""
        return self.prompt_of(self.text(problem))

    def prompt_of(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The same around text that is tokenised already: a model's own words to a thread of its."""
        before, after = self._template
        return (*before, *ids, *after)

    def decode(self, ids: Sequence[int]) -> str:
        """The exact text of these ids, tags included."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    @cached_property
    def _template(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if not self.tokenizer.chat_template:
            whole: list[int] = self.tokenizer.encode("", add_special_tokens=True)
            return tuple(token for token in whole if token == self.tokenizer.bos_token_id), ()
        try:
            rendered = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": _SLOT}], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program of the model's, and may raise anything
            raise TagError(f"the chat template cannot be rendered ({shortened(error)}): correct it") from error
        before, found, after = str(rendered).partition(_SLOT)
        if not found or _SLOT in after:
            raise TagError("the chat template does not show the user's message exactly once: use a plain template")
        return self._marks(before), self._marks(after)

    def _marks(self, text: str) -> tuple[int, ...]:
        """Ids of template text, whose special tokens are meant."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return tuple(ids)
