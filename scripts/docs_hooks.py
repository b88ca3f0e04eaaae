"""What MkDocs cannot do alone: pages made of files outside docs/, links to them, and nav entries still to come."""

import posixpath
import re
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
INCLUDED = {
    "index.md": "README.md",
    "architecture.md": "ARCHITECTURE.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
    "slurm.md": "slurm/README.md",
}
"""Pages by their name on the site, and the file each of them is."""
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the included pages, which lie in no folder that MkDocs reads."""
    generated = import_module("mkdocs.structure.files").File.generated  # only there while the site is built
    for page, source in INCLUDED.items():
        files.append(generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that are right in the checkout, made right on the site."""
    return relinked(markdown, page.file.src_uri)


def relinked(markdown: str, page: str) -> str:
    """Links of a page of the site to files of the checkout. One to a file that is no page becomes its text; one to
    nothing stays, and the strict build says so.

    >>> relinked("[a](docs/lora.md) [b](rollout/view.py) [c](slurm/README.md#sweeps) [d](nowhere.md)", "index.md")
    '[a](lora.md) b [c](slurm.md#sweeps) [d](nowhere.md)'
    """
    source = INCLUDED.get(page, f"docs/{page}")
    pages = {file: name for name, file in INCLUDED.items()}

    def moved(link: re.Match[str]) -> str:
        mark, text, target, anchor = link.group(1), link.group(2), link.group(3), link.group(4) or ""
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if ":" in target or not (ROOT / file).exists():
            return link.group(0)
        name = pages.get(file, file.removeprefix("docs/") if file.startswith("docs/") else "")
        if not name:
            return text
        return f"{mark}[{text}]({posixpath.relpath(name, posixpath.dirname(page) or '.')}{anchor})"

    return _LINK.sub(moved, markdown)
