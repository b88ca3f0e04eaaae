"""README lists what is shipped and names real files; its commands are tested with all others (test_commands_shown)."""

import re
from pathlib import Path

from conftest import ROOT

from apr_train import compose

README = (ROOT / "README.md").read_text()


def test_the_table_of_groups_lists_every_option_that_is_shipped() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ((?:`\w+` ?)+)", README, re.MULTILINE)
    listed = {group: sorted(re.findall(r"\w+", options)) for group, options in rows}
    shipped = {group.name: sorted(f.stem for f in group.glob("*.yaml")) for group in compose.CONFIGS.glob("*/")}
    assert listed == shipped


def test_files_and_links_exist(root: Path) -> None:
    linked = re.findall(r"\]\(([^)#]+)\)", README)
    scripts = re.findall(r"scripts/\w+\.py", README)
    missing = [name for name in (*linked, *scripts) if not (root / name).exists()]
    assert not missing
