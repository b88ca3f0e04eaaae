"""Verifies mathematical answers with math-verify, in child processes that are killed at a deadline."""

import re
from importlib.util import find_spec

from rewards.verdict import Verdict
from rewards.verify.answer import answer_text
from rewards.verify.child import ChildError, ChildVerifier, Worker
from rewards.verify.notation import one_spelling, settles, tidy, told, variables

MAX_CHARACTERS = 512
"""Of one answer; the longest reference of the usual benchmarks has about 200."""
MEMORY_BYTES = 1 << 30

_NUMBER = re.compile(r"(?<![\w.])-?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?(?![0-9])")
_SEVERAL = re.compile(r"-?[0-9]+(?:[.,][0-9]+)*(?:(?:\s|~|\\[ ;:]|\\q?quad)+-?[0-9]+(?:[.,][0-9]+)*)+")


class MathVerifierError(ChildError):
    """math-verify cannot run at all, or the verifier was closed. Says what to do."""


def extract(response: str) -> str | None:
    r"""The answer in a response: the content of the last `\boxed{}`, else the last number; None where there is none.

    Searched is the text after </think>; a response without any think tag is all answer. An unclosed box, more than
    512 characters, and numbers side by side (math-verify would add them up) are no answer.

    >>> extract(r"<think>\boxed{1}</think>So \boxed{\frac{1}{2}}."), extract("That makes 1,250 dollars.")
    ('\\frac{1}{2}', '1,250')
    """
    tagged = "<think>" in response or "</think>" in response
    text = answer_text(response) if tagged else response
    if text is None:
        return None
    if r"\boxed{" in text:
        found = _braced(text, text.rindex(r"\boxed{") + len(r"\boxed{"))
    else:
        numbers = _NUMBER.findall(text)
        found = numbers[-1] if numbers else None
    if found is None or not found.strip() or len(found) > MAX_CHARACTERS or _SEVERAL.fullmatch(found.strip()):
        return None
    return found.strip()


def _braced(text: str, start: int) -> str | None:
    depth, index = 1, start
    while index < len(text):
        if text[index] == "\\":
            index += 1  # an escaped brace is a character, not a bracket
        elif text[index] in "{}":
            depth += 1 if text[index] == "{" else -1
            if depth == 0:
                return text[start:index]
        index += 1
    return None


class MathVerifier(ChildVerifier):
    """Thread-safe verifier over `workers` children; each starts at its first answer and again after it was killed.

    `timeout`: the comparison took over `deadline_s` seconds. `error`: two children died of it, or the reference is
    unreadable.
    `unparsable`: no answer, or one that is no mathematics although the reference is.
    Raises MathVerifierError when math-verify is not installed, and after `close`.

    The answer is what is judged: a plain number in lowest terms, anything else, and long decimals, as `tidy` leaves it
    (see `one_spelling`).

    >>> with MathVerifier() as verify:
    ...     verify(r"<think></think>\\boxed{1/2}", "0.5"), verify.answer(r"So \\boxed{\\dfrac12}.")
    ('correct', '1/2')
    """

    def __init__(self, deadline_s: float = 5.0, workers: int = 1) -> None:
        if find_spec("math_verify") is None:
            raise MathVerifierError("math-verify is not installed: pip install 'math-verify[antlr4_9_3]'")
        if deadline_s <= 0 or workers < 1:
            raise MathVerifierError(f"deadline_s > 0 and workers >= 1 needed, got {deadline_s} and {workers}")
        children = [Worker(deadline_s, MEMORY_BYTES, "math-verify", MathVerifierError) for _ in range(workers)]
        super().__init__(deadline_s, children, "math", MathVerifierError)

    def answer(self, response: str) -> str | None:
        found = extract(response)
        for _ in range(MAX_CHARACTERS):  # tidied again where that shows more to do: `7..` is 7
            again = None if found is None else extract(rf"</think>\boxed{{{one_spelling(found, MAX_CHARACTERS)}}}")
            if again == found:
                return found
            found = again
        return None

    def _judge(self, response: str, reference: str, deadline_s: float) -> Verdict:
        self._check_open()
        text, gold = self.answer(response), tidy(reference)
        if not 0 < len(gold) <= MAX_CHARACTERS:
            return "error"
        if text is None:
            return "unparsable"
        verdict = self._ask(*variables(told(text), gold), deadline_s)
        if verdict in ("timeout", "error"):
            return verdict
        right = settles(text, gold, verdict == "correct")
        return "correct" if right else "wrong" if verdict == "correct" else verdict
