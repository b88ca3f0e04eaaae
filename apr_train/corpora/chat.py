"""Splits a chat rendered as text into question and response, and a response into reasoning and answer."""

from apr_train.corpora.base import Drop, Refused

_START, _END = "<|im_start|>", "<|im_end|>"


def turns_of(text: str) -> tuple[str, str]:
    r"""(question, response) of a ChatML text, as Qwen's template renders one; a system turn is left out.

    Refused when there is not exactly one user turn and one assistant turn after it, or the latter does not end.

    >>> turns_of("<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n")
    ('1+1?', '2')
    """
    before, *turns = text.split(_START)
    if before.strip():
        raise Refused(Drop.NO_CHAT)
    found: list[tuple[str, str]] = []
    for turn in turns:
        role, newline, rest = turn.partition("\n")
        content, end, after = rest.partition(_END)
        if not newline or after.strip():
            raise Refused(Drop.NO_CHAT)
        if not end:
            raise Refused(Drop.CUT_OFF if role == "assistant" else Drop.NO_CHAT)
        found.append((role, content))
    if found and found[0][0] == "system":
        del found[0]
    if [role for role, _ in found] != ["user", "assistant"]:
        raise Refused(Drop.NO_CHAT)
    (_, question), (_, response) = found
    if not question.strip():
        raise Refused(Drop.NO_PROMPT)
    return question, response


def thinking_of(response: str, name: str = "think") -> tuple[str, str]:
    r"""(reasoning, answer): what the one `<think>` element at the start holds, and what follows it, to the letter.

    >>> thinking_of("<think>\nOne and one.\n</think>\n\n2")
    ('\nOne and one.\n', '\n\n2')
    """
    opens, closes = f"<{name}>", f"</{name}>"
    start = response.lstrip()
    if not start.startswith(opens) or start.count(opens) != 1 or start.count(closes) > 1:
        raise Refused(Drop.NO_THINK)
    reasoning, found, answer = start[len(opens) :].partition(closes)
    if not found:
        raise Refused(Drop.CUT_OFF)
    return reasoning, answer
