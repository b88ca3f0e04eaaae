"""Every preset on right and wrong answers of six shapes, worked out by hand from the published formula.

The shapes are in trees.py. eta: 0, 30/120, 50/130, 30/120, 1/60, 50/140. Every group has one more right answer, of 100
tokens in sequence, so that group-relative terms have something to compare with.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import SHAPES, grow, judged

from apr_train.compose import CONFIGS, load
from rewards.build import make_reward
from rewards.reward import Reward
from rewards.scored import Group, Scored

PRESETS = sorted(file.stem for file in (CONFIGS / "reward").glob("*.yaml"))
REWARDS: dict[str, Reward] = {name: make_reward(load([f"reward={name}"]).reward.terms) for name in PRESETS}
COMPANION = judged(grow(100))
ZERO, MINUS = [0.0] * 6, [-1.0] * 6


def tokens(*l_total: int) -> list[float]:
    """robust and hardware_aware charge 0.002 per 1000 tokens."""
    return [0.002 * total / 1000 for total in l_total]


COST = tokens(60, 120, 130, 120, 60, 140)
# order: sequential, one block, nested, malformed, empty threads, duplicate threads
GOLDEN: dict[str, dict[str, list[float]]] = {
    "outcome": {"right": [1.0] * 6, "wrong": ZERO},
    "apr": {"right": [1.0] * 6, "wrong": ZERO},
    "parallel_r1_s1": {"right": [1.0] * 6, "wrong": MINUS},
    "npr_papo": {"right": [1.0] * 6, "wrong": MINUS},
    # 1 + min(0.5 * eta, 0.2): 0.5 * 0.25 = 0.125, 0.5 * 5/13 = 0.1923, 0.5 / 60 = 0.0083, 0.5 * 5/14 = 0.1786
    "threadweaver_paper": {"right": [1.0, 1.125, 1.1923077, 1.125, 1.0083333, 1.1785714], "wrong": ZERO},
    # 1 + 0.5 * min(eta, 0.2): all but the empty threads are at the cap
    "threadweaver_code": {"right": [1.0, 1.1, 1.1, 1.1, 1.0083333, 1.1], "wrong": MINUS},
    # 1 + 0.5 * min(L_total / L_critical - 1, 0.2): the empty threads have 60/59 - 1 = 0.0169
    "threadweaver_readme": {"right": [1.0, 1.1, 1.1, 1.1, 1.0084746, 1.1], "wrong": ZERO},
    # step 9 pays for structure: 1.2 with a well-formed block, -1 for a malformed one
    "parallel_r1_s2": {"right": [1.0, 1.2, 1.2, -1.0, 1.2, 1.2], "wrong": MINUS},
    "parallel_r1_scaffold": {"right": [1.0, 1.2, 1.2, -1.0, 1.2, 1.2], "wrong": MINUS},
    # +1 only with at least one block and a right answer; the paper does not ask for the format
    "parallel_r1_seen_easy": {"right": [-1.0, 1.0, 1.0, 1.0, 1.0, 1.0], "wrong": MINUS},
    # no block -1.5, malformed -1, threads of no token -0.4, else +-1
    "npr_zero": {"right": [-1.5, 1.0, 1.0, -1.0, -0.4, 1.0], "wrong": [-1.5, -1.0, -1.0, -1.0, -0.4, -1.0]},
    # 0.5 without, 1 with a well-formed block; critical paths far below 2,000 cost nothing
    "dc_cot": {"right": [0.5, 1.0, 1.0, 0.5, 1.0, 1.0], "wrong": ZERO},
    # nobody writes more than 512 tokens
    "selfcest": {"right": [1.0] * 6, "wrong": ZERO},
    # step 9 of 200: both bonuses at 0.1 * (1 - 8/200) = 0.096; threads / 4: 0, 2/4, 4/4, 2/4, 2/4, 2/4, all finished
    "parl": {
        "right": [1.0, 1.144, 1.192, 1.144, 1.144, 1.144],
        "wrong": [0.0, 0.144, 0.192, 0.144, 0.144, 0.144],
    },
    # + 0.2 * (parallel tokens / (4 * L_critical)): 80/360, 110/320, 80/360, 2/236, 100/360; malformed - 0.5
    "asyncthink": {
        "right": [1.0, 1.0444444, 1.06875, 0.5444444, 1.0016949, 1.0555556],
        "wrong": [0.0, 0.0, 0.0, -0.5, 0.0, 0.0],
    },
    # of two right answers the z-scores are +1 and -1; in sequence both have parallel ratio 0: no z-score
    "parason": {"right": [1.1, 1.2, 1.2, 1.2, 1.2, 1.2], "wrong": ZERO},
    # 0.1 a thread, right or not: 0, 2, 4, 2, 2, 2 threads
    "naive_threads": {"right": [1.0, 1.2, 1.4, 1.2, 1.2, 1.2], "wrong": [0.0, 0.2, 0.4, 0.2, 0.2, 0.2]},
    # nested: the outer threads are worth 1 + 0.2 * 1 and 1, their mean 1.1, so 1 + 0.2 * 1.1
    "rao": {"right": [1.0, 1.2, 1.22, 1.2, 1.2, 1.2], "wrong": [0.0, 0.2, 0.22, 0.2, 0.2, 0.2]},
    # 0.5 * (1 - L / ((L + 100) / 2)) - tokens; malformed 1 - 0.5; duplicates repeat each other fully: - 0.1
    "robust": {
        "right": [
            1 + 0.5 * (1 - 60 / 80) - COST[0],
            1 + 0.5 * (1 - 90 / 95) - COST[1],
            1 + 0.5 * (1 - 80 / 90) - COST[2],
            0.5 - COST[3],
            1 + 0.5 * (1 - 59 / 79.5) - COST[4],
            1 + 0.5 * (1 - 90 / 95) - 0.1 - COST[5],
        ],
        "wrong": ZERO,
    },
    # the same with waits: reading the prompt 0.2, a step of two 1.03, of three 1.065; companion 100.2
    # one block: 20.2 + 30 * 1.03 + 20 + (B read again: 50 * 0.02) + 20 = 92.1
    # nested: 10.2 + 20 * 1.03 + 10 * 1.065 + 10 * 1.03 + 10 + 30 * 0.02 + 10 + 40 * 0.02 + 10 = 83.15
    # empty: 40.2 + 1.03 + 0.02 + 18 = 59.25; duplicates: 20.2 + 50 * 1.03 + 1 + 20 = 92.7
    "hardware_aware": {
        "right": [
            1 + 0.5 * (1 - 60.2 / 80.2) - COST[0],
            1 + 0.5 * (1 - 92.1 / 96.15) - COST[1],
            1 + 0.5 * (1 - 83.15 / 91.675) - COST[2],
            0.5 - COST[3],
            1 + 0.5 * (1 - 59.25 / 79.725) - COST[4],
            1 + 0.5 * (1 - 92.7 / 96.45) - 0.1 - COST[5],
        ],
        "wrong": ZERO,
    },
}


def pay(preset: str, scored: Scored, step: int = 9, *companions: Scored) -> float:
    return REWARDS[preset](Group((scored, *(companions or (COMPANION,)))), step)[0]


def test_every_preset_has_its_golden_values() -> None:
    assert sorted(GOLDEN) == PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_the_preset_pays_what_was_published(preset: str) -> None:
    for answer, verdict in (("right", "correct"), ("wrong", "wrong")):
        paid = [
            pay(preset, judged(trajectory, verdict, "a breach" if shape == "malformed" else None))
            for shape, trajectory in SHAPES.items()
        ]
        assert paid == pytest.approx(GOLDEN[preset][answer], abs=1e-6), answer


def test_alternating_presets_pay_for_structure_in_the_last_two_steps_of_ten() -> None:
    block = judged(SHAPES["one block"])
    for preset in ("parallel_r1_s2", "parallel_r1_scaffold"):
        assert [step for step in range(1, 32) if pay(preset, block, step) > 1.1] == [9, 10, 19, 20, 29, 30]
    assert pay("parallel_r1_scaffold", block, 200) == pytest.approx(1.2)
    assert pay("parallel_r1_scaffold", block, 209) == 1.0
    broken = judged(SHAPES["one block"], flaw="a breach")
    assert [pay("parallel_r1_s2", broken, step) for step in (8, 9)] == [1.0, -1.0]


def test_parl_anneals_to_the_outcome() -> None:
    nested = judged(SHAPES["nested"])
    assert [pay("parl", nested, step) for step in (1, 101, 201, 900)] == pytest.approx([1.2, 1.1, 1.0, 1.0])


def test_dc_cot_charges_only_right_answers_for_a_long_path() -> None:
    # 4,750 is half-way from 2,000 to 7,500
    assert pay("dc_cot", judged(grow(4750))) == pytest.approx(0.45)
    assert pay("dc_cot", judged(grow(9000))) == pytest.approx(0.4)
    assert pay("dc_cot", judged(grow(9000), "wrong")) == 0.0


def test_selfcest_charges_the_root_and_the_longest_thread() -> None:
    # root 768: 0.3 * (1 - 1/e) = 0.18964; longest thread 1,024: 0.2 * (1 - 1/e) = 0.12642
    long = grow(500, [[1024], [10]], 268)
    assert pay("selfcest", judged(long)) == pytest.approx(1 - 0.1896362 - 0.1264241)
    assert pay("selfcest", judged(grow(90_000, [[90_000]], 1))) == pytest.approx(0.5)
    assert pay("selfcest", judged(long, "wrong")) == 0.0


def test_robust_and_hardware_aware_never_let_a_slow_right_answer_fall_to_a_wrong_one() -> None:
    slow = judged(grow(30_000))
    # a latency of 1 - 30000 / 15050 is cut at -0.5: 1 - 0.25 - 0.06
    assert pay("robust", slow) == pytest.approx(0.69)
    assert pay("hardware_aware", slow) > 0.6


def test_group_relative_presets_compare_right_answers_with_right_answers() -> None:
    block, short, long = judged(SHAPES["one block"]), judged(SHAPES["sequential"]), judged(grow(120))
    others = (judged(SHAPES["nested"], "wrong"), judged(grow(1), "timeout"))
    # critical paths 90, 60, 120, mean 90: latency 0, 1/3, -1/3, deviation sqrt(2/27) = 0.27217, z 0, 1.22474, -1.22474
    # parallel ratio 2/3, 0, 0: mean 2/9, deviation sqrt(8/81) = 0.31427, z 1.41421, -0.70711, -0.70711
    paid = REWARDS["parason"](Group((block, short, long, *others)), 1)
    assert paid[:4] == pytest.approx([1.141421, 1.051763, 0.806815, 0.0], abs=1e-6)
    # with a malformed right answer of 150 instead, the mean is 100: 0.5 * 0.4 and 0.5 * 0.1; less 0.002 per 1000 tokens
    broken = judged(grow(150), flaw="a breach")
    paid = REWARDS["robust"](Group((short, block, broken, *others)), 1)
    assert paid[:4] == pytest.approx([1.19988, 1.04976, 0.4997, 0.0])
    assert paid[4] != paid[4]


def test_the_variants_that_the_presets_name_in_their_first_lines_compose() -> None:
    def variant(preset: str, *overrides: str) -> Reward:
        return make_reward(load([f"reward={preset}", *(f"reward.terms.{each}" for each in overrides)]).reward.terms)

    group = Group((judged(grow(4500)), judged(SHAPES["one block"]), judged(SHAPES["one block"], flaw="a breach")))
    # the paper of Parallel-R1 does not punish a malformed block, the code of its easy stage asks for a well-formed one
    assert variant("parallel_r1_s2", "malformed.weight=0")(group, 9) == [1.0, 1.2, 1.0]
    assert variant("parallel_r1_seen_easy", "success.gate=[correct,parallel,well_formed]")(group, 9) == [
        -1.0,
        1.0,
        -1.0,
    ]
    # DC-CoT's later stage: 4,500 is a quarter of the way from 2,000 to 12,000, of 0.9
    late = variant("dc_cot", "overlong.longest=12000", "overlong.buffer=10000", "overlong.weight=0.9")
    assert late(group, 1) == pytest.approx([0.5 - 0.225, 1.0, 0.5])


# Properties

THREAD = st.recursive(
    st.integers(1, 30).map(lambda n: [n]),
    lambda inner: st.tuples(st.integers(1, 30), st.lists(inner, min_size=1, max_size=3), st.integers(1, 9)).map(list),
    max_leaves=8,
)
GATED = sorted(set(PRESETS) - {"naive_threads", "parl", "rao", "npr_zero", "asyncthink"})
"""Presets under which a wrong answer is worth the same, whatever its shape. The first three pay wrong answers for
threads; NPR's grades and AsyncThink's penalty charge them for the format."""
BOUNDS = {
    **dict.fromkeys(("outcome", "apr", "dc_cot", "selfcest"), (0.0, 1.0)),
    **dict.fromkeys(("parallel_r1_s1", "npr_papo", "parallel_r1_seen_easy"), (-1.0, 1.0)),
    **dict.fromkeys(("parallel_r1_s2", "parallel_r1_scaffold"), (-1.0, 1.2)),
    **{"threadweaver_paper": (0.0, 1.2), "threadweaver_code": (-1.0, 1.1), "threadweaver_readme": (0.0, 1.1)},
    **{"npr_zero": (-2.0, 1.0), "parl": (0.0, 1.2), "asyncthink": (-0.5, 1.1), "rao": (0.0, 1.5)},
    **{"robust": (0.0, 1.25), "hardware_aware": (0.0, 1.25), "parason": (-0.2, 1.5)},
}


def flipped(pieces: list[object]) -> list[object]:
    """The same tree with the threads of every block in the opposite order."""
    return [[flipped(t) for t in reversed(p)] if isinstance(p, list) else p for p in pieces]


@given(THREAD, st.sampled_from(["correct", "wrong", "unparsable"]), st.integers(1, 300), st.booleans())
def test_rewards_stay_in_their_bounds(pieces: list[object], verdict: str, step: int, broken: bool) -> None:
    scored = judged(grow(*pieces), verdict, "a breach" if broken else None)
    for preset, (low, high) in BOUNDS.items():
        assert low - 1e-9 <= pay(preset, scored, step) <= high + 1e-9, preset
    assert set(BOUNDS) | {"naive_threads"} == set(PRESETS)


@given(THREAD, st.integers(1, 30))
def test_a_wrong_answer_gains_nothing_from_parallelism(pieces: list[object], step: int) -> None:
    wrong, plain = judged(grow(*pieces), "wrong"), judged(grow(60), "wrong")
    for preset in GATED:
        assert pay(preset, wrong, step) == pay(preset, plain, step), preset
    assert pay("asyncthink", wrong, step) <= pay("asyncthink", plain, step)


def test_presets_without_a_gate_do_pay_wrong_answers_for_threads() -> None:
    for preset in ("naive_threads", "parl", "rao", "npr_zero"):
        assert pay(preset, judged(SHAPES["one block"], "wrong")) > pay(preset, judged(SHAPES["sequential"], "wrong"))


@given(THREAD, st.integers(1, 30))
def test_the_order_of_threads_changes_nothing(pieces: list[object], step: int) -> None:
    for preset in PRESETS:
        if preset != "hardware_aware":  # a machine serves threads in an order, and a join reads all but the first again
            paid = [pay(preset, judged(grow(*each)), step) for each in (pieces, flipped(pieces))]
            assert paid[0] == pytest.approx(paid[1]), preset


@given(THREAD, THREAD, st.integers(0, 300))
def test_prompt_length_and_the_order_of_members_change_nothing(
    one: list[object], other: list[object], prompt: int
) -> None:
    for preset in PRESETS:
        members = (judged(grow(*one)), judged(grow(*other), "wrong"), COMPANION)
        paid = REWARDS[preset](Group(members), 9)
        assert REWARDS[preset](Group(members[::-1]), 9)[::-1] == pytest.approx(paid), preset
        if preset != "hardware_aware":  # reading a prompt takes time, the same for all members
            longer = (judged(grow(*one, prompt=prompt)), judged(grow(*other, prompt=prompt), "wrong"), COMPANION)
            assert REWARDS[preset](Group(longer), 9) == pytest.approx(paid), preset


@given(THREAD, st.integers(1, 200))
def test_a_longer_path_never_earns_more_under_robust(pieces: list[object], more: int) -> None:
    longer = [*pieces[:-1], pieces[-1] + more]
    assert pay("robust", judged(grow(*longer))) < pay("robust", judged(grow(*pieces)))
    assert pay("hardware_aware", judged(grow(*longer))) < pay("hardware_aware", judged(grow(*pieces)))


@given(st.integers(1, 30))
def test_more_acceleration_never_earns_less_under_threadweaver(extra: int) -> None:
    # a further thread, no longer than the path beside it, raises eta and leaves L_critical
    base, block = [5, [[30], [20]], 5], [5, [[30], [20], [extra]], 5]
    for preset in ("threadweaver_paper", "threadweaver_code", "threadweaver_readme"):
        assert pay(preset, judged(grow(*block))) >= pay(preset, judged(grow(*base)))
