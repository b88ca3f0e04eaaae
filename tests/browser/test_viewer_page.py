"""The page of rollouts in a real browser: it opens fast, does what its keys say, and runs nothing a model wrote.

Needs chromium and chromedriver: `make test-browser` installs them where they are missing.
"""

import html
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chromium import chromium, complaints, missing, opened, press, requests
from made_rollouts import HOSTILE, hostile_text, many, random_dag
from stitched_trees import random_trajectory

from rollout.critical_path import finish_times, measure
from rollout.viewer import Recorded, page
from rollout.viewer.pieces import shown_lines

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not installed: {' '.join(missing())}; run make test-browser")
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def shown(driver: Any, tmp_path: Path) -> Open:
    """Opens a page of these rollouts."""

    def show(recorded: list[Recorded], *decode: Any, **options: Any) -> Any:
        file = tmp_path / "page.html"
        file.write_text(page(recorded, *decode, **options))
        opened(driver, file)
        return driver

    return show


def ask(driver: Any, script: str, *arguments: Any) -> Any:
    return driver.execute_script(f"return {script}", *arguments)


def chosen(driver: Any) -> int:
    return int(ask(driver, "document.getElementById('detail').dataset.rollout"))


def fact(driver: Any, name: str) -> str:
    return ask(driver, f"document.querySelector('[data-fact=\"{name}\"] dd').textContent")


def count(driver: Any) -> int:
    return int(ask(driver, "document.getElementById('count').textContent").split(" ")[0].replace(",", ""))


def enter(driver: Any, control: str, value: str) -> None:
    """Fills a control as a person would, so that it tells the page."""
    script = """const [id, value] = arguments, control = document.getElementById(id);
        control.value = value;
        control.dispatchEvent(new Event("input"));"""
    driver.execute_script(script, control, value)


# Speed

SCROLL = """
const done = arguments[0], port = document.getElementById("list"), frames = [], tasks = [];
new PerformanceObserver((list) => tasks.push(...list.getEntries())).observe({ type: "longtask" });
let last = 0;
function tick(now) {
  if (last) frames.push(now - last);
  last = now;
  port.scrollTop += 233;
  if (frames.length < 300) requestAnimationFrame(tick);
  else done({ frames, tasks, top: port.scrollTop, rows: document.querySelectorAll("#list .row").length });
}
requestAnimationFrame(tick);
"""


def test_five_thousand_rollouts_open_within_three_seconds_and_scroll(driver: Any, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page(many(5000)))
    started = time.perf_counter()
    opened(driver, file)
    seconds = time.perf_counter() - started
    own = ask(driver, "performance.getEntriesByName('rollouts-shown')[0].startTime / 1000")
    assert count(driver) == 5000
    found = driver.execute_async_script(SCROLL)
    frames = sorted(found["frames"])
    print(
        f"\n5,000 rollouts, {file.stat().st_size / 1e6:.1f} MB: open in {seconds:.2f} s (the page's own clock "
        f"{own:.2f} s); scrolling: median frame {frames[150]:.1f} ms, p95 {frames[285]:.1f} ms, longest "
        f"{frames[-1]:.1f} ms, long tasks {len(found['tasks'])}"
    )
    assert found["top"] > 60_000, "it did not scroll"
    assert found["rows"] < 100, "rows that nobody sees exist"
    assert seconds < 3


def test_a_row_that_scrolls_in_shows_the_rollout_of_its_place(shown: Open) -> None:
    recorded = many(3000)
    driver = shown(recorded)
    press(driver, "g")  # no groups: row n is rollout n of the ranked steps
    for top in (0, 26_000, 51_999, 13_000):
        driver.execute_async_script(
            """const [top, done] = arguments;
               document.getElementById("list").scrollTop = top;
               requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)));""",
            top,
        )
        seen = ask(
            driver,
            """[...document.querySelectorAll("#list .row")].filter((row) => !row.hidden).map((row) =>
               [Number(row.id.slice(3)), row.getBoundingClientRect().top])""",
        )
        places = [place for place, _ in seen]
        assert len(set(places)) == len(places)
        assert {top // 26, top // 26 + 20} <= set(places)
        assert max(y for _, y in seen) >= 760  # down to the bottom of the window
    driver.execute_script("document.getElementById('list').scrollTop = 0")
    press(driver, *"jjj")
    order = sorted(range(3000), key=lambda i: (recorded[i].step, *worth(recorded[i]), i))
    assert chosen(driver) == order[3]


# Filters and keys


def worth(recorded: Recorded) -> tuple[bool, float, int]:
    """Sorts the best first."""
    return recorded.reward is None, -(recorded.reward or 0.0), measure(recorded.trajectory).l_critical


def test_filters_keep_what_they_say(shown: Open) -> None:
    recorded = many(400, seed=3)
    driver = shown(recorded)

    def eta(each: Recorded) -> float:
        return measure(each.trajectory).eta

    cases: list[tuple[dict[str, str], Callable[[Recorded], bool]]] = [
        ({"verdict": "correct"}, lambda r: r.verdict == "correct"),
        ({"verdict": "not correct"}, lambda r: r.verdict != "correct"),
        ({"verdict": "timeout"}, lambda r: r.verdict == "timeout"),
        ({"outcome": "truncated"}, lambda r: r.trajectory.outcome == "truncated"),
        ({"eta-min": "0.3", "eta-max": "0.5"}, lambda r: 0.3 <= eta(r) <= 0.5),
        ({"threads-min": "3", "threads-max": "4"}, lambda r: 3 <= measure(r.trajectory).threads <= 4),
        ({"step-min": "20", "step-max": "30"}, lambda r: 20 <= r.step <= 30),
        ({"search": "BENCH-000"}, lambda r: r.trajectory.problem_id.startswith("bench-000")),
        (
            {"verdict": "wrong", "threads-max": "0"},
            lambda r: r.verdict == "wrong" and eta(r) == 0,
        ),
    ]
    for controls, wanted in cases:
        for control, value in controls.items():
            enter(driver, control, value)
        expected = [i for i, each in enumerate(recorded) if wanted(each)]
        assert 0 < len(expected) < 400 and count(driver) == len(expected), controls
        assert chosen(driver) in expected
        press(driver, "c")
        assert count(driver) == 400
    enter(driver, "search", "nothing is called so")
    assert count(driver) == 0 and "No rollout" in ask(driver, "document.getElementById('detail').textContent")
    press(driver, "b", "w", "n", "j", "c")
    assert count(driver) == 400 and chosen(driver) >= 0


def test_keys_do_what_the_help_says(shown: Open) -> None:
    recorded = many(400, seed=5)
    driver = shown(recorded)
    groups = [sorted(range(s, s + 8), key=lambda i: (*worth(recorded[i]), i)) for s in range(0, 400, 8)]
    at_start = chosen(driver)
    first = next(k for k, members in enumerate(groups) if at_start in members)
    assert at_start == groups[first][0]
    press(driver, "w")
    assert chosen(driver) == groups[first][-1]
    press(driver, "b", "j", "j", "k")
    assert chosen(driver) == groups[first][1]
    press(driver, "n")
    second = next(k for k, members in enumerate(groups) if chosen(driver) in members)
    assert second != first and chosen(driver) == groups[second][0]
    press(driver, "p")
    assert chosen(driver) == groups[first][0]
    press(driver, "\ue010", "\ue011")  # End, Home
    assert chosen(driver) == at_start
    press(driver, "\ue015", "\ue013", "\ue00f", "\ue00e")  # arrows down and up, pages down and up
    assert chosen(driver) == at_start
    press(driver, "/", *"bench-0017")
    assert count(driver) == 8 and chosen(driver) == groups[17][0], "letters of a search are no commands"
    press(driver, "\ue00c", "c", "?")  # Escape leaves the field
    assert count(driver) == 400 and ask(driver, "document.getElementById('help').open")
    press(driver, "\ue00c", "h")
    assert ask(driver, "document.querySelector('#detail .texts').className") == "texts by-heat"
    assert ask(driver, "document.querySelectorAll('#detail .text i.heat7, #detail .text i.heat1').length") > 0
    press(driver, "h", "g")
    assert not ask(driver, "document.getElementById('grouped').checked")
    assert ask(driver, "document.querySelectorAll('#detail .text i').length") == 0


def test_a_click_reaches_the_best_and_the_worst_of_a_group(shown: Open) -> None:
    recorded = many(40, seed=6)
    driver = shown(recorded)
    for word, place in (("worst", -1), ("best", 0)):
        driver.execute_script(f"document.querySelector('#list .row.group button.{word}').click()")
        own = [
            i for i in range(40) if recorded[i].trajectory.problem_id == recorded[chosen(driver)].trajectory.problem_id
        ]
        assert chosen(driver) == sorted(own, key=lambda i: (*worth(recorded[i]), i))[place]


def test_sorting_by_a_column_puts_its_extreme_first(shown: Open) -> None:
    recorded = many(200, seed=7)
    driver = shown(recorded)
    press(driver, "g")
    lengths = [measure(each.trajectory).l_critical for each in recorded]
    for expected in (min(lengths), max(lengths)):
        driver.execute_script("document.querySelector('#heads .l_critical').click()")
        press(driver, "\ue011")
        assert lengths[chosen(driver)] == expected


# The tree


def dags(seed: int) -> list[Recorded]:
    rng = random.Random(seed)
    trees = [random_trajectory(rng, (1, 2, 3), range(5, 30)) for _ in range(12)]
    found = [*trees, *(random_dag(rng, rng.randint(2, 25)) for _ in range(28))]
    return [Recorded(1, replace(each, problem_id=f"{i:02d}"), "correct", 1.0, 0.0) for i, each in enumerate(found)]


def test_lanes_are_the_longest_paths_of_measure(shown: Open) -> None:
    recorded = dags(11)
    driver = shown(recorded)
    seen = set[int]()
    for _ in recorded:
        trajectory = recorded[chosen(driver)].trajectory
        lengths = measure(trajectory)
        assert int(fact(driver, "L_critical")) == lengths.l_critical
        assert int(fact(driver, "L_total")) == lengths.l_total
        boxes = ask(
            driver,
            """[...document.querySelectorAll("#detail rect.box")].map((box) => ({
               start: Number(box.dataset.start), finish: Number(box.dataset.finish),
               critical: box.classList.contains("critical"), prompt: box.classList.contains("prompt"),
               y: Number(box.getAttribute("y")), x: Number(box.getAttribute("x")),
               width: Number(box.getAttribute("width")) }))""",
        )
        assert [box["finish"] for box in boxes] == finish_times(trajectory)
        assert sum(box["finish"] - box["start"] for box in boxes) == lengths.l_total
        chain = [box for box in boxes if box["critical"]]
        assert sum(box["finish"] - box["start"] for box in chain) == lengths.l_critical
        assert all(a["finish"] == b["start"] for a, b in pairwise(chain))
        assert len({box["y"] for box in boxes}) == len({segment.thread for segment in trajectory.segments})
        scale = {round(b["width"] / (b["finish"] - b["start"]), 1) for b in boxes if b["finish"] - b["start"] > 3}
        assert len(scale) <= 2, "tokens have one length"
        seen.add(chosen(driver))
        press(driver, "j")
    assert seen == set(range(len(recorded)))


def test_a_click_on_a_segment_leads_to_its_text(shown: Open) -> None:
    driver = shown(many(80, seed=2, size=300), lambda ids: "".join(f"[{i}]" for i in ids))
    enter(driver, "threads-min", "5")
    for at in range(ask(driver, "document.querySelectorAll('rect.box').length")):
        driver.execute_script(
            """const box = document.querySelectorAll("rect.box")[arguments[0]];
               box.dispatchEvent(new MouseEvent("click", { bubbles: true }));""",
            at,
        )
        box, text = ask(
            driver,
            "['rect.picked', '.text .picked'].map((where) => document.querySelector(where).dataset.segment)",
        )
        assert box == text
        top, foot = ask(
            driver,
            """["top", "bottom"].map((side) =>
               document.querySelector(".text .picked").getBoundingClientRect()[side])""",
        )
        assert foot > 0 and top < 800, "its text is out of sight"
    driver.execute_script("document.querySelector('rect.box.sampled').focus()")
    assert ask(driver, "document.getElementById('tip').textContent").startswith("[")


# Hostile text


def hostile(count: int = 24) -> list[Recorded]:
    found = many(count, seed=9, size=len(HOSTILE) * 3)
    return [
        replace(
            each,
            trajectory=replace(
                each.trajectory,
                problem_id=HOSTILE[i % len(HOSTILE)],
                dialect=HOSTILE[-1 - i % len(HOSTILE)],
                notes=dict.fromkeys((*HOSTILE, "__proto__"), 1),
            ),
            flaw="".join(HOSTILE),
            terms=dict.fromkeys(HOSTILE, 0.5),
        )
        for i, each in enumerate(found)
    ]


def test_what_a_model_wrote_is_text_and_nothing_of_it_runs_or_loads(shown: Open) -> None:
    recorded = hostile()
    driver = shown(recorded, hostile_text, title=HOSTILE[1])
    press(driver, *"jjbwngjjhhnj")
    enter(driver, "search", "<script>")
    found = ask(driver, "document.getElementById('detail').textContent")
    for text in HOSTILE[:9]:
        assert shown_lines(text).replace("\n", "") in found.replace("\n", "")
    assert ask(driver, "window.pwned === undefined")
    assert ask(driver, "document.querySelectorAll('img, iframe, link, script:not([id]), svg[onload]').length") == 1
    assert ask(driver, "document.title") == HOSTILE[1]
    assert [url.partition(":")[0] for url in requests(driver)] == ["file"]
    assert complaints(driver) == []


def test_the_policy_stops_a_script_and_a_request_that_got_in_all_the_same(shown: Open) -> None:
    driver = shown(many(8))
    blocked = driver.execute_async_script(
        """const done = arguments[0], seen = [];
        document.addEventListener("securitypolicyviolation", (e) => seen.push(e.effectiveDirective));
        const script = document.createElement("script");
        script.textContent = "window.pwned = 1";
        const holder = document.createElement("div");
        holder.innerHTML = '<img src="https://example.com/x.png" onerror="window.pwned=1"><b style="color:red">x</b>';
        document.body.append(script, holder);
        fetch("https://example.com/").catch(() => 0);
        setTimeout(() => done([window.pwned === undefined, seen]), 300);"""
    )
    assert blocked[0]
    assert {"script-src-elem", "img-src", "connect-src", "style-src-attr"} <= set(blocked[1])
    assert [url for url in requests(driver) if not url.startswith("file:")] == []


def test_the_page_works_in_a_frame_that_may_run_scripts_and_nothing_else(driver: Any, tmp_path: Path) -> None:
    """As W&B shows a panel."""
    from selenium.webdriver.support.ui import WebDriverWait

    inner = html.escape(page(many(16)), quote=True)
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<!doctype html><iframe sandbox="allow-scripts" width="900" height="600" srcdoc="{inner}"></iframe>'
    )
    driver.get(outer.as_uri())
    driver.switch_to.frame(0)
    try:
        WebDriverWait(driver, 20, 0.05).until(lambda d: ask(d, "document.documentElement.dataset.ready === 'yes'"))
        assert count(driver) == 16 and chosen(driver) >= 0
        assert ask(driver, "document.querySelectorAll('rect.box').length") > 0
    finally:
        driver.switch_to.default_content()


def test_without_rollouts_the_page_says_so(shown: Open) -> None:
    driver = shown([])
    press(driver, *"jbwngh")
    assert count(driver) == 0 and complaints(driver) == []


# Both colour schemes, and a smaller window


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_at_1280_by_800(shown: Open, scheme: str) -> None:
    driver = shown(many(64, seed=4))
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    wide, tall, ground = ask(
        driver,
        """[document.documentElement.scrollWidth, document.documentElement.scrollHeight,
           getComputedStyle(document.body).backgroundColor]""",
    )
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert (wide, tall) == (1280, 800)
    assert (sum(json.loads(ground.replace("rgb(", "[").replace(")", "]"))) > 382) == (scheme == "light")
    bar = ask(driver, "document.getElementById('bar').getBoundingClientRect().height")
    assert bar < 50, "the filters take two lines"
