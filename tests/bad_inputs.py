"""What users get wrong and the one line that each of it gets; printed as docs/errors.md by the command there."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

REGENERATE = "python tests/bad_inputs.py > docs/errors.md"
HEAD = f"""# What goes wrong, and the line it gets

Everything that a user can mend is one line on stderr after `error: `, with exit code 2, and says what to do; a
traceback is ours to mend. The lines below are tested to the letter (`tests/test_bad_inputs.py`). This page is written
by `{REGENERATE}`: add a case to `tests/bad_*.py`, not here.
"""


@dataclass(frozen=True)
class Case:
    """`act` is called in an empty folder, which is the working one, and raises a UserError that reads `line`.

    Paths in `line` are relative, as they were given; a server's port is written as 8000.
    """

    name: str
    group: str
    did: str
    line: str
    act: Callable[[], object] = field(repr=False)
    overrides: tuple[str, ...] = ()
    """Of scripts/train.py, where that is how it came about."""


def write(name: str, content: str | bytes) -> str:
    """A file in the working folder; its name."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def cases() -> list[Case]:
    """All, in the order of the page."""
    modules = ("configs", "values", "plugins", "data", "models", "checkpoints", "servers", "views")
    return [case for name in modules for case in import_module(f"bad_{name}").CASES]


def page(found: list[Case]) -> str:
    """The page: a table a group."""
    lines = [HEAD]
    for group in dict.fromkeys(case.group for case in found):
        lines += [f"## {group}", "", "| what was wrong | the line |", "|---|---|"]
        for case in found:
            if case.group == group:
                given = f": {code(' '.join(case.overrides))}" if case.overrides else ""
                lines.append(f"| {case.did}{given} | {code(case.line)} |")
        lines.append("")
    return "\n".join(lines)


def code(text: str) -> str:
    """Text as code in a cell of a table, a line end written out."""
    text = text.replace("\n", "\\n")
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}".replace("|", "\\|")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.modules.setdefault("bad_inputs", sys.modules["__main__"])  # the cases import it by that name
    print(page(cases()), end="")
