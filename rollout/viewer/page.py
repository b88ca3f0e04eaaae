"""One HTML page of recorded rollouts: its script, its style and its data are in it, and it may ask for nothing else."""

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from importlib import resources

from rollout.shown import visible
from rollout.viewer.columns import packed
from rollout.viewer.pieces import Decode, Vocabulary
from rollout.viewer.recorded import Recorded

SCRIPTS = ("data.js", "groups.js", "list.js", "lanes.js", "text.js", "detail.js", "main.js")
"""Joined in this order into one script."""


def page(
    recorded: Sequence[Recorded],
    decode: Decode | None = None,
    *,
    vocabulary: int | None = None,
    title: str = "rollouts",
) -> str:
    """The whole page. Text that a model wrote is in its compressed data only, and becomes text nodes.

    `decode` gives the exact text of token ids (without one the ids are shown); `vocabulary` is how many ids it knows.
    The page's policy lets run the one script with the right hash, and no request be made. Raises ViewerError.
    """
    style = static("view.css")
    script = '(() => {\n"use strict";\n' + "\n".join(static(name) for name in SCRIPTS) + "\n})();\n"
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    filled = {
        "policy": policy,
        "title": html.escape(visible(title)),
        "style": style,
        "script": script,
        "data": packed(recorded, Vocabulary(decode, vocabulary)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: filled[slot[1]], static("page.html"))


def static(name: str) -> str:
    """A file that the page is made of."""
    return resources.files("rollout.viewer").joinpath("static", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names what may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
