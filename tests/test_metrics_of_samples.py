"""Figures people will quote, by hand and against a slow second way to count them."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_samples import sample

from apr_train.evaluation import metrics
from apr_train.evaluation.compare import compare
from apr_train.evaluation.matched import matched
from apr_train.evaluation.metrics import (
    accuracy_within,
    adaptivity,
    by_problem,
    curve,
    figures,
    maj_at,
    pass_at,
    speedups,
    summarise,
    vote,
    within_critical,
    within_total,
)
from apr_train.evaluation.samples import Sample, SamplesError, read_samples, write_samples
from apr_train.evaluation.statistics import bootstrap, holm, sign_flips, wilson

# -- by hand -----------------------------------------------------------------------------------------------------------


def test_speedups_by_hand() -> None:
    found = speedups(
        [sample("a", l_critical=100), sample("b", l_critical=300)],
        [sample("a", l_critical=50), sample("b", l_critical=200)],
    )
    assert found["speedup_ratio_of_means"] == 1.6 and found["speedup_mean_of_ratios"] == 1.75
    assert found["speedup_mean_of_ratios_ci95"] == [1.5, 2.0]  # half of all draws have one twice
    several = [sample("a", 0, l_critical=40), sample("a", 1, l_critical=60), sample("b", l_critical=200)]
    again = speedups([sample("a", l_critical=100), sample("b", l_critical=300)], several)
    assert again["speedup_mean_of_ratios"] == 1.75  # a problem with more samples weighs no more


def test_a_speedup_of_other_problems_is_refused() -> None:
    with pytest.raises(ValueError, match="same problems"):
        speedups([sample("a")], [sample("b")])


def test_summary_by_hand() -> None:
    samples = [
        sample("a", parts=1, l_critical=10),
        sample("b", parts=2, l_critical=20, correct=False, blocks=1, threads=3, width=3, depth=1, parallel_tokens=30),
        sample("c", parts=2, l_critical=60, correct=None, blocks=1, threads=2, width=2, depth=2, parallel_tokens=60),
    ]
    summary = summarise(samples)
    assert (summary["accuracy"], summary["not_judged"], summary["l_critical_mean"]) == (0.5, 1, 30.0)
    assert (summary["l_critical_p50"], summary["l_critical_p90"]) == (20, 60)
    assert summary["trigger_rate"] == pytest.approx(2 / 3, abs=1e-6) and summary["parallel_ratio"] == 0.5
    assert (summary["threads_mean"], summary["width_mean"], summary["depth_mean"]) == (
        pytest.approx(5 / 3, abs=1e-6),
        2.5,
        1.5,
    )
    assert summary["self_speedup"] == 2.0 and summary["eta_mean"] == 0.5
    assert summary["by_parts"]["2"]["accuracy"] == 0.0 and summary["by_parts"]["1"]["accuracy"] == 1.0
    assert summary["by_source"] == {} and (summary["accuracy_low"], summary["accuracy_high"]) == wilson(1, 2)


def test_the_forks_of_a_search_are_not_the_policys() -> None:
    own, client = sample("a", l_critical=10), sample("b", l_critical=10, blocks=1, threads=8, width=8, searched=True)
    found = figures([own, client])
    assert (found["trigger_rate"], found["threads_mean"], found["strict"]) == (0.0, 0.0, 1.0)
    only = figures([client])
    assert only["trigger_rate"] is only["strict"] is only["width_mean"] is None and only["self_speedup"] == 2.0
    assert not {"strict", "threads"} & {each.figure for each in compare([sample("b")], [client])}


def test_every_row_has_as_many_votes_on_the_critical_path() -> None:
    wrong = [sample("a", n, l_critical=10, correct=n > 0, answer="7" if n else "8") for n in range(3)]
    found = matched({"several": wrong, "one": [sample("a", l_critical=10)]}).rows
    assert found["several"]["critical"]["accuracy"] == 0.0  # its first sample alone
    assert matched({"several": wrong}).rows["several"]["critical"]["accuracy"] == 1.0


def test_wilson_by_hand() -> None:
    # 9 of 10: centre (0.9 + 1.92/10)/1.38416, the textbook's (0.596, 0.982)
    assert wilson(9, 10) == (0.5958, 0.9821)
    assert wilson(0, 0) == (0.0, 1.0)
    assert str(wilson(0, 20)[0]) == "0.0" and wilson(20, 20)[1] == 1.0


def test_a_vote_by_hand() -> None:
    said = [sample(number=n, answer=a, correct=a == "7") for n, a in enumerate(["7", "8", "8", ""])]
    assert vote(said) is False and vote(said[:1]) is True and vote([]) is False and vote(said[3:]) is False
    tied = [sample(number=0, answer="7", logprob=-0.1), sample(number=1, answer="8", correct=False, logprob=-0.2)]
    assert vote(tied) is True and vote(tied[::-1]) is True
    assert vote([sample(answer="7", logprob=-0.5), sample(number=1, answer="8", correct=False, logprob=-0.5)]) is True
    assert vote([sample(answer="7", correct=None)]) is None


def test_budgets_by_hand() -> None:
    own = [
        sample(number=n, l_critical=c, correct=ok) for n, (c, ok) in enumerate([(40, False), (10, True), (20, True)])
    ]
    for n, one in enumerate(own[1:]):
        assert one.answer == "7", n
    assert within_total(own, 79) is False  # not one fits
    assert within_total(own, 80) is False  # the first alone, which is wrong
    assert within_total(own, 140) is True  # all three: 80 + 20 + 40
    assert within_critical(own, 9) is False and within_critical(own, 10) is True and within_critical(own, 40) is True
    assert accuracy_within(own, "total", 140)["accuracy"] == 1.0
    points = curve(own, "critical")
    assert points[0]["budget"] == 10 and points[-1]["budget"] == 40 and points[-1]["accuracy"] == 1.0


def test_difficulty_by_hand() -> None:
    theirs = [
        sample("easy", l_critical=10),
        sample("long", l_critical=90),
        sample("hard", l_critical=20, correct=False),
    ]
    ours = [sample("easy"), sample("long", blocks=1, width=4), sample("hard", blocks=1, width=2)]
    rows = adaptivity(ours, theirs, bins=3)
    assert [row["trigger_rate"] for row in rows] == [0.0, 1.0, 1.0]
    assert [row["width_mean"] for row in rows] == [None, 4.0, 2.0]
    assert [row["baseline_accuracy"] for row in rows] == [1.0, 1.0, 0.0]


def test_holm_and_sign_flips_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": 0.03, "c": 0.06, "b": 0.06}
    assert sign_flips([1.0, 1.0, 1.0]) == 0.25  # two of eight sign patterns are as far from 0
    assert sign_flips([0.0, 0.0]) == 1.0 and sign_flips([1.0, -1.0]) == 1.0


def test_a_difference_by_chance_is_not_significant_and_a_large_one_is() -> None:
    one = [sample(str(n), l_critical=100 + n % 7, correct=n % 2 == 0) for n in range(60)]
    other = [sample(str(n), l_critical=50 + n % 7, correct=(n + n % 4 // 2) % 2 == 0) for n in range(60)]
    found = {each.figure: each for each in compare(one, other)}
    assert found["l_critical"].significant and found["l_critical"].difference == pytest.approx(-50)
    assert not found["accuracy"].significant and found["accuracy"].low < 0 < found["accuracy"].high
    assert not any(each.significant for each in compare(one, one))


# -- a second way ------------------------------------------------------------------------------------------------------

answers = st.sampled_from(["", "7", "8", "9"])


@st.composite
def sampled(draw: st.DrawFn, problems: int = 4, most: int = 5) -> list[Sample]:
    found: list[Sample] = []
    for name in range(draw(st.integers(1, problems))):
        right = draw(st.sampled_from(["7", "8"]))
        for number in range(draw(st.integers(1, most))):
            answer = draw(answers)
            failed = bool(answer) and draw(st.integers(0, 9)) == 0
            l_critical = draw(st.integers(1, 50))
            blocks = draw(st.integers(0, 2))
            found.append(
                sample(
                    *(f"p{name}", number),
                    answer=answer,
                    correct=None if failed else answer == right,
                    l_critical=l_critical,
                    l_total=l_critical + draw(st.integers(0, 50)),
                    window=draw(st.integers(1, 90)),
                    blocks=blocks,
                    threads=2 * blocks,
                    width=2 * (blocks > 0),
                    logprob=draw(st.sampled_from([-0.5, -0.25, -1.0])),
                    openings=tuple(draw(st.lists(st.sampled_from("xyz"), max_size=3))),
                    flaw=draw(st.sampled_from([None, "a", "b"])),
                )
            )
    return found


def elected(samples: Sequence[Sample]) -> bool | None:
    """The winner, by looking at each answer in turn."""
    best: tuple[Any, ...] | None = None
    for at, one in enumerate(samples):
        if not one.answer:
            continue
        group = [other for other in samples if other.answer == one.answer]
        rank = (
            len(group),
            sum(o.logprob or 0.0 for o in group) / len(group),
            -min(i for i, o in enumerate(samples) if o.answer == one.answer),
        )
        if best is None or rank > best[0]:
            known = [o.correct for o in group if o.correct is not None]
            best = rank, known[0] if known else None, at
    if best is None:
        return None if samples and all(o.correct is None for o in samples) else False
    return best[1]


@given(sampled())
def test_votes_and_chances_agree_with_all_subsets(samples: list[Sample]) -> None:
    problems = by_problem(samples)
    for own in problems.values():
        assert vote(own) == elected(own)
    for k in (1, 2, 3):
        shares: list[float] = []
        for own in problems.values():
            judged = [one.correct for one in own if one.correct is not None]
            picks = list(itertools.combinations(judged, k))
            shares += [sum(any(pick) for pick in picks) / len(picks)] if picks else []
        expected = sum(shares) / len(shares) if shares else None
        found = pass_at(problems, k)
        assert (found is None) == (expected is None)
        assert found is None or expected is None or found == pytest.approx(expected, abs=1e-6)


@given(sampled())
def test_a_vote_of_some_is_between_the_worst_and_the_best_of_all_subsets(samples: list[Sample]) -> None:
    problems = by_problem(samples)
    for k in (1, 2, 3):
        bounds: list[tuple[float, float]] = []
        for own in problems.values():
            votes = [elected(pick) for pick in itertools.combinations(own, k)]
            known = [float(each) for each in votes if each is not None]
            bounds += [(min(known), max(known))] if known else []
        found = maj_at(problems, k)
        if found is not None and len(bounds) == sum(len(own) >= k for own in problems.values()):
            assert sum(low for low, _ in bounds) / len(bounds) - 1e-6 <= found
            assert found <= sum(high for _, high in bounds) / len(bounds) + 1e-6


@given(sampled(), st.integers(1, 300))
def test_budgets_agree_with_a_count_of_what_fits(samples: list[Sample], budget: int) -> None:
    for axis in ("total", "critical", "window"):
        right: list[bool] = []
        for own in by_problem(samples).values():
            if axis == "total":
                fits = [one for at, one in enumerate(own) if sum(o.l_total for o in own[: at + 1]) <= budget]
                verdict = elected(fits)
            elif axis == "critical":
                verdict = elected([one for one in own if one.l_critical <= budget])
            else:
                verdict = own[0].correct if own[0].window <= budget else False
            right += [] if verdict is None else [verdict]
        found = accuracy_within(samples, axis, budget)
        assert found["problems"] == len(right)
        assert (
            found["accuracy"] is None
            if not right
            else found["accuracy"] == pytest.approx(sum(right) / len(right), abs=1e-6)
        )


@given(sampled())
def test_means_and_counts_agree_with_a_plain_count(samples: list[Sample]) -> None:
    found = figures(samples)
    ranked = sorted(one.l_total for one in samples)
    for share, name in ((0.5, "l_total_p50"), (0.9, "l_total_p90")):
        value = found[name]  # the first value that at least this share does not exceed
        assert sum(one <= value for one in ranked) >= share * len(ranked) - 1e-9
        assert sum(one < value for one in ranked) < share * len(ranked)
    assert found["outcomes"] == dict(Counter(one.outcome for one in samples).most_common())
    assert sum(found["flaws"].values()) == sum(one.flaw is not None for one in samples)
    assert found["strict"] == pytest.approx(sum(one.flaw is None for one in samples) / len(samples), abs=1e-6)
    openings: list[float] = []
    for own in by_problem(samples).values():
        names = [opening for one in own for opening in one.openings]
        openings += [len(set(names)) / len(names)] if names else []
    expected = pytest.approx(sum(openings) / len(openings), abs=1e-6) if openings else None
    assert found["distinct_openings"] == expected
    assert figures(samples[::-1]) | {"x": 0} == found | {"x": 0}  # in whatever order they come


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_a_bootstrap_interval_holds_the_mean_and_does_not_leave_the_values(values: list[float]) -> None:
    low, high = bootstrap(values)
    assert min(values) - 1e-4 <= low <= high <= max(values) + 1e-4
    assert low - 1e-4 <= sum(values) / len(values) <= high + 1e-4 or len(values) < 8


def test_intervals_cover_what_they_should() -> None:
    """Of 300 draws of 40 problems of a known share, 95% intervals must hold it nearly always, and not always."""
    import random

    rng, covered = random.Random(0), {"wilson": 0, "bootstrap": 0}
    for draw in range(300):
        hits = [rng.random() < 0.3 for _ in range(40)]
        for name, (low, high) in (
            ("wilson", wilson(sum(hits), 40)),
            ("bootstrap", bootstrap([float(h) for h in hits], draw)),
        ):
            covered[name] += low <= 0.3 <= high
    assert all(270 <= count < 300 for count in covered.values()), covered


# -- their file --------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(sampled())
def test_samples_survive_their_file(samples: list[Sample]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_samples(Path(folder) / "s.jsonl", samples)
        assert read_samples(Path(folder) / "s.jsonl") == samples


@pytest.mark.parametrize("line", ["{}", "[", '{"problem_id": "p"}', "7", "null"])
def test_a_file_of_something_else_is_one_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "s.jsonl").write_text(line + "\n")
    with pytest.raises(SamplesError, match=r"s\.jsonl:1 is no sample"):
        read_samples(tmp_path / "s.jsonl")
    with pytest.raises(SamplesError, match="cannot be read"):
        read_samples(tmp_path / "none.jsonl")


def test_a_summary_is_json() -> None:
    assert math.isfinite(len(json.dumps(summarise([sample("a"), sample("b", correct=False)]), allow_nan=False)))
    assert metrics.summarise([])["accuracy"] is None
