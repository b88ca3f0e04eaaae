"""The answer within a response's text, so that equal answers can be counted."""

_BOX = r"\boxed{"
_END = "</think>"


def answer_text(text: str) -> str:
    """The content of the last whole `\\boxed{...}`, else what follows the reasoning; white space runs become one blank.

    An unclosed box is none; without `</think>`, all of the text is the answer.

    >>> answer_text("<think>7 or 8</think>so \\\\boxed{ \\\\frac{1}{2} }")
    '\\\\frac{1}{2}'
    >>> answer_text("<think>7 or 8</think> 7\\n apples")
    '7 apples'
    """
    after = text.rpartition(_END)[2]
    boxed = _last_box(after)
    return " ".join((after if boxed is None else boxed).split())


def _last_box(text: str) -> str | None:
    """The content of the last box whose braces close; in one pass, since the text is a model's and may be long."""
    opened: list[int] = []
    box: tuple[int, int] | None = None
    for at, character in enumerate(text):
        if character == "{":
            opened.append(at + 1)
        elif character == "}" and opened:
            start = opened.pop()
            if text.startswith(_BOX, start - len(_BOX)) and start >= len(_BOX) and (box is None or start > box[0]):
                box = start, at
    return None if box is None else text[slice(*box)]
