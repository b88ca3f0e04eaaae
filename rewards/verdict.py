"""What a verifier says of an answer, and the protocol verifiers follow."""

from typing import Literal, Protocol, runtime_checkable

Verdict = Literal["correct", "wrong", "unparsable", "timeout", "error"]
"""`timeout` and `error` say that the verifier failed, not the model: they are counted and never look like `wrong`."""


@runtime_checkable
class Verifier(Protocol):
    """Judges the text of a whole response against a problem's reference answer, and tells what that answer is. Neither
    may raise for model text."""

    def __call__(self, response: str, reference: str) -> Verdict:
        """`response` is the model's final text with tags as text; `reference` the answer in the task's own notation."""
        ...

    def answer(self, response: str) -> str | None:
        """The answer in a response, in one spelling: what votes are counted by, and what strategies pass on. None where
        there is none: then every verdict is `unparsable`, for a reference that can be read.

        Equal spellings are equal answers, with one verdict for any reference. Different ones may still be equal. A
        response that gives the spelling itself as its answer has it again. Pure and cheap: no child process.
        """
        ...


@runtime_checkable
class BatchVerifier(Verifier, Protocol):
    """A verifier with workers: judges several responses at once, and is closed at the end of a run."""

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Verdicts of (response, reference) pairs, in order."""
        ...

    def close(self) -> None:
        """Ends the workers."""
        ...
