"""The commands that README and docs show: where each stands, its words, and on how many ranks it trains."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "slurm/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("python", "torchrun", "sbatch", "make")
"""What a line begins with that is checked here; the others are the shell's, Slurm's and Hydra's own."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One command of one page."""

    page: str
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        return self.words[0]

    @property
    def script(self) -> str:
        """The file that is run: scripts/train.py, slurm/train.sbatch; empty for make."""
        return next((word for word in self.words if re.fullmatch(r"(scripts|tests|slurm)/\w+\.(py|sbatch)", word)), "")

    @property
    def arguments(self) -> list[str]:
        """What the script gets."""
        return list(self.words[self.words.index(self.script) + 1 :])

    @property
    def overrides(self) -> list[str]:
        """Hydra's: `key=value` and `~key`."""
        return [word for word in self.arguments if ("=" in word and not word.startswith("--")) or word.startswith("~")]

    @property
    def ranks(self) -> int:
        """How many processes train: a torchrun's, or one a GPU of all nodes of a job."""
        if self.program == "torchrun":
            return int(self.words[self.words.index("--nproc-per-node") + 1])
        flags = dict(word.split("=", 1) for word in self.words if word.startswith("--") and "=" in word)
        servers = 1 if self.script == "slurm/serve_sampler.sbatch" else 0
        return (int(flags.get("--nodes", 1)) - servers) * int(flags.get("--gpus-per-node", 1))

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def commands_in(text: str, page: str) -> list[Shown]:
    """Of the indented and fenced blocks; a backslash continues the line, white space and # begin a remark."""
    found: list[Shown] = []
    fenced = False
    for line in text.replace("\\\n", " ").splitlines():
        fenced ^= line.startswith("```")
        if not (fenced or line.startswith("    ")):
            continue
        for command in re.split(r"\s+#\s", line)[0].split("; "):
            if command.split()[:1] and command.split()[0] in PROGRAMS:
                found.append(Shown(page, tuple(shlex.split(command))))
    return found


COMMANDS = [
    shown for page in PAGES for shown in commands_in(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)))
]


def of(*scripts: str) -> list[Shown]:
    """The commands that run one of these files."""
    return [shown for shown in COMMANDS if Path(shown.script).name in scripts]
