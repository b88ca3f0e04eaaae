"""What a verifier says of an answer, and the protocol verifiers follow."""

from typing import Literal, Protocol, runtime_checkable

Verdict = Literal["correct", "wrong", "unparsable", "timeout", "error"]
"""`timeout` and `error` say that the verifier failed, not the model: they are counted and never look like `wrong`."""


class Verifier(Protocol):
    """Judges the text of a whole response against a problem's reference answer. Must never raise for model text."""

    def __call__(self, response: str, answer: str) -> Verdict:
        """`response` is the model's final text with tags as text; `answer` the reference in the task's own notation."""
        ...


@runtime_checkable
class BatchVerifier(Verifier, Protocol):
    """A verifier with workers: judges several responses at once, and is closed at the end of a run."""

    def verify_many(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Verdicts of (response, answer) pairs, in order."""
        ...

    def close(self) -> None:
        """Ends the workers."""
        ...
