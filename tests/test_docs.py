"""The documentation site: every page in the nav, every link met, every example run, every picture true."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from docs_examples.balance import Balance
from docs_examples.sums import Sums, SumsOptions
from helpers import toy_tokens
from trees import grow, judged

from apr_train import tasks
from apr_train.fidelity import dense_view
from apr_train.model import character_tokenizer
from apr_train.tasks import make_task
from apr_train.tasks.base import JudgesThreads
from rewards import build
from rewards.build import make_reward
from rewards.errors import RewardError
from rewards.scored import Group
from rollout.critical_path import measure
from rollout.demonstration import Block
from rollout.dialects import dialect_class, make_dialect
from rollout.engines.replay import ReplayEngine
from rollout.orchestrator import Budget, run_trajectory
from rollout.tokens import Tokens, register_tags
from rollout.trajectory import Trajectory
from scripts import docs_hooks, draw_concepts

DOCS = ROOT / "docs"
PAGES = sorted(str(file.relative_to(DOCS)) for file in DOCS.rglob("*.md"))
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
LEFT_OUT: dict[str, str] = {}
"""Pages that are in no nav, and why."""


def nav_pages(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    below = entry.values() if isinstance(entry, dict) else entry
    return [page for each in below for page in nav_pages(each)]


# ---- pages and links


def test_every_page_is_in_the_nav_or_left_out_on_purpose() -> None:
    named = nav_pages(SITE["nav"])
    assert len(named) == len(set(named))
    assert set(PAGES) - set(named) == LEFT_OUT.keys()
    assert set(named) - set(PAGES) <= docs_hooks.INCLUDED.keys()


def slug(heading: str) -> str:
    """The anchor that Python-Markdown gives a heading."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


def anchors(file: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)}


@pytest.mark.parametrize("page", [*PAGES, *docs_hooks.INCLUDED])
def test_every_link_of_the_checkout_is_met(page: str) -> None:
    """As a reader of the files follows it; the strict build checks the site's own."""
    file = ROOT / docs_hooks.INCLUDED.get(page, f"docs/{page}")
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        met = (file.parent / path).resolve() if path else file
        if page in PAGES and not met.exists():  # a page that only the site has
            site = docs_hooks.INCLUDED.get(str(met.relative_to(DOCS)))
            assert site, f"{page} links to {target}"
            met = ROOT / site
        assert met.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(met), f"{page}: {met.name} has no heading for #{anchor}"


def test_links_to_files_that_are_no_pages_become_text_and_broken_ones_stay() -> None:
    told = docs_hooks.relinked
    assert told("[x](docs/lora.md#tags) ![p](docs/img/trie.svg)", "index.md") == "[x](lora.md#tags) ![p](img/trie.svg)"
    assert told("[x](../docs/guards.md)", "slurm.md") == "[x](guards.md)"
    assert told("[x](../../slurm/README.md)", "results/rewards.md") == "[x](../slurm.md)"
    assert told("[config](apr_train/config.py) [no](docs/no.md)", "index.md") == "config [no](docs/no.md)"
    assert told("[arXiv](https://arxiv.org/abs/1)", "index.md") == "[arXiv](https://arxiv.org/abs/1)"


def test_nothing_but_a_build_installs_mkdocs() -> None:
    for name in ("cpu", "gpu"):
        assert "mkdocs" not in (ROOT / f"requirements/{name}.txt").read_text()
    pinned = {name: (ROOT / f"requirements/{name}.txt").read_text().splitlines() for name in ("docs", "cpu")}
    versions = {key: dict(line.split("==") for line in pinned[key] if "==" in line) for key in pinned}
    both = versions["docs"].keys() & versions["cpu"].keys()
    assert both, "the lists share packages"
    assert {name for name in both if versions["docs"][name] != versions["cpu"][name]} == set()


# ---- pictures


@pytest.mark.parametrize("name", sorted(file.name for file in (DOCS / "img").glob("*.svg")))
def test_a_picture_is_what_the_code_draws_today(name: str) -> None:
    """Draw them again with `python scripts/draw_concepts.py`."""
    assert draw_concepts.pictures()[name] == (DOCS / "img" / name).read_text(encoding="utf-8")


def test_every_picture_is_in_the_repository_and_shown() -> None:
    shown = set(re.findall(r"img/(\w+\.svg)", (DOCS / "concepts.md").read_text()))
    assert shown == draw_concepts.pictures().keys() == {file.name for file in (DOCS / "img").glob("*.svg")}


@pytest.mark.parametrize("join", draw_concepts.JOINS)
def test_a_drawn_mask_is_that_of_one_dense_forward_per_call(join: str) -> None:
    """`dense_view` works a call out a token at a time, by the definition, and shares nothing with what is drawn."""
    trajectory, _ = draw_concepts.sampled(draw_concepts.JOINS[join], join)
    seen = draw_concepts.sights(trajectory)
    rows = list(zip(seen.owners, seen.positions, strict=True))
    assert len(set(rows)) == len(rows)
    met = set[int]()
    for index, call in enumerate(trajectory.calls):
        ids, positions, mask, _, _ = dense_view(trajectory, index)
        tokens = [(s, k) for s in (*call.context, call.sampled) for k in range(len(trajectory.segments[s].ids))]
        wanted = list(zip(tokens, positions.tolist(), strict=True))
        inputs = len(ids) - 1  # a call's last token is never an input
        at = [rows.index(each) for each in wanted[:inputs]]
        for i, place in enumerate(at):
            assert {at[j] for j in range(inputs) if mask[i, j]} == seen.sees[place]
        met |= {*at, *(rows.index(each) for each in wanted[inputs:] if each in rows)}
    assert met == set(range(len(rows))), "a row that no call has"


def test_the_drawn_critical_path_is_as_long_as_the_measured_one() -> None:
    trajectory, _ = draw_concepts.sampled("threadweaver", "transcript")
    ends: list[int] = []
    for segment in trajectory.segments:
        ends.append(len(segment.ids) + max((ends[parent] for parent in segment.parents), default=0))
    chain = draw_concepts.longest_path(trajectory, ends)
    own = sum(len(trajectory.segments[i].ids) for i in chain if trajectory.segments[i].origin != "prompt")
    assert own == measure(trajectory).l_critical


# ---- examples


def test_every_example_is_shown_and_every_included_file_is_there() -> None:
    """A formatter once took the marks of an inclusion for Python."""
    included = {
        name for page in PAGES for name in re.findall(r'^--8<-- "(.+)"$', (DOCS / page).read_text(), re.MULTILINE)
    }
    assert included == {str(f.relative_to(ROOT)) for f in (ROOT / "tests/docs_examples").glob("*.py")}


def play(dialect_name: str, demonstration: Any, join: str | None = None) -> tuple[Trajectory, Any]:
    tokenizer = character_tokenizer()
    register_tags(tokenizer, dialect_class(dialect_name).tags())
    tokens = Tokens(tokenizer)
    dialect = make_dialect(dialect_name, tokens, join)
    engine = ReplayEngine(dialect.write(demonstration), max_context=2000)
    budget = Budget(response=1000, answer=20, threads=8, blocks=8)
    return asyncio.run(run_trajectory(engine, dialect, "p", tokens.prompt("ab"), budget)), dialect


@pytest.mark.parametrize("join", ["transcript", "stitched"])
def test_the_example_dialect_forks_joins_and_is_checked(join: str) -> None:
    name = f"{ROOT / 'tests/docs_examples/ways.py'}:Ways"
    trajectory, dialect = play(name, draw_concepts.SHOWN, join)
    lengths = measure(trajectory)
    assert (trajectory.outcome, lengths.threads, dialect.check(trajectory)) == ("answered", 2, None)
    assert lengths.l_critical < lengths.l_total
    flat, _ = play(name, draw_concepts.Demonstration(("a345 b67",), "57"), join)
    assert measure(flat).blocks == 0


def test_the_example_term_pays_what_its_docstring_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.KINDS, "balance", Balance)
    reward = make_reward({"outcome": {}, "balance": {"weight": 0.1, "gate": ["correct"], "power": 1}})
    even, uneven, flat = judged(grow(5, [[30], [50]], 5)), judged(grow(5, [[30], [50]], 5), "wrong"), judged(grow(60))
    assert reward(Group((even, uneven, flat)), step=1) == pytest.approx([1.08, 0.0, 1.0])
    with pytest.raises(RewardError, match="power >= 1"):
        make_reward({"outcome": {}, "balance": {"power": 0.5}})


def test_the_example_task_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks._TASKS, "sums", (Sums, SumsOptions))
    block = re.search(r"```yaml\n(.*?)```", (DOCS / "howto/task.md").read_text(), re.DOTALL)
    assert block is not None
    shown = yaml.safe_load(block[1])
    task = make_task(shown["task"], shown["options"])
    assert shown["options"] == {name: getattr(SumsOptions(), name) for name in SumsOptions.__dataclass_fields__}
    train, heldout = task.problems("train", 40, 0), task.problems("heldout", 40, 0)
    assert train == task.problems("train", 40, 0)
    assert not {p.prompt for p in train} & {p.prompt for p in heldout}
    dialect = make_dialect("threadweaver", toy_tokens())
    for problem in train:
        for form in task.forms if (problem.parts or 0) > 1 else task.forms[:1]:
            demonstration = task.demonstration(problem, form)
            assert dialect.write(demonstration)
            assert task.verifier(f"<think></think>{demonstration.answer}", problem.answer) == "correct"
            blocks = [piece for piece in demonstration.reasoning if isinstance(piece, Block)]
            for asked, body in (thread for block in blocks for thread in block.threads):
                assert isinstance(task, JudgesThreads)
                assert task.thread_success(problem, asked, f"{body}\n") == 1.0
                assert task.thread_success(problem, asked, f"{body}0\n") == 0.0
                assert task.thread_success(problem, f"{asked}?", f"{body}\n") is None
    assert {p.parts for p in train} == {1, 2, 3, 4}


# ---- the site itself


class Fetched(HTMLParser):
    """What a browser gets by itself when it shows a page: scripts, styles, pictures, frames."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio"):
            self.addresses.append(told.get("src") or "")
        if tag == "link" and told.get("rel") != "canonical":
            self.addresses.append(told.get("href") or "")


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own, so that a test leaves ours as it was; scripts/docs.sh installs into it."""
    folder = tmp_path_factory.mktemp("docs") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    shutil.copy(Path(sys.prefix) / "bin/uv", folder / "bin/uv")
    return folder


def build_site(checkout: Path, builder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [str(checkout / "scripts/docs.sh"), "build", str(builder), "--site-dir", str(site)]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, timeout=500)


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(builder: Path, tmp_path: Path) -> None:
    done = build_site(ROOT, builder, tmp_path / "site")
    assert done.returncode == 0, done.stderr[-3000:]
    there = {str(file.relative_to(tmp_path / "site")) for file in (tmp_path / "site").rglob("*.html")}
    assert {page.replace(".md", ".html") for page in nav_pages(SITE["nav"])} <= there
    for name in there:
        reader = Fetched()
        reader.feed((tmp_path / "site" / name).read_text(encoding="utf-8"))
        assert [a for a in reader.addresses if re.match(r"(https?:)?//", a)] == [], name
    index = json.loads((tmp_path / "site/search/search_index.json").read_text())
    assert any("L_critical" in doc["text"] for doc in index["docs"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[gone](nowhere.md)", "nowhere.md"),
        ("[gone](lora.md#no-such-heading)", "no-such-heading"),
        ('--8<-- "tests/docs_examples/nowhere.py"', "nowhere.py"),
    ],
)
def test_a_broken_link_anchor_or_example_fails_the_build(builder: Path, tmp_path: Path, line: str, told: str) -> None:
    for name in ("mkdocs.yml", *docs_hooks.INCLUDED.values(), "requirements/docs.txt", "scripts/docs_hooks.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("scripts/docs.sh", "scripts/uv_env.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("docs", "tests/docs_examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    with (tmp_path / "docs/lora.md").open("a") as page:
        page.write(f"\n{line}\n")
    done = build_site(tmp_path, builder, tmp_path / "site")
    assert done.returncode != 0
    assert told in done.stderr
