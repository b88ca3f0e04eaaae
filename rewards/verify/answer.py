"""Where the answer of a response is: the text after its one closing </think>."""


def answer_text(response: str) -> str | None:
    """The text after `</think>`, stripped. None when the reasoning was never closed, or closed twice (several answers).

    >>> answer_text("<think>a345</think>5")
    '5'
    >>> answer_text("<think>a345</think>5</think>6") is None
    True
    """
    _, *answers = response.split("</think>")
    return answers[0].strip() if len(answers) == 1 else None
