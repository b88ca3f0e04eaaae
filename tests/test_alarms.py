"""Alarms ring when parallelism dies with its bonus or saves no time, once each, and stay silent otherwise."""

from apr_train.alarms import WINDOW, Alarms
from rewards.schedule import make_schedule

SCAFFOLD = make_schedule(
    {
        "kind": "piecewise",
        "stages": [{"until": 40, "schedule": {"kind": "alternating"}}, {"schedule": {"value": 0.0}}],
    }
)


def row(trigger: float, total: float = 100.0, critical: float = 80.0, bonus: float = 1.0) -> dict[str, float]:
    return {
        "tree/trigger_rate": trigger,
        "tree/l_total": total,
        "tree/l_critical": critical,
        "reward/schedule/outcome": 1.0,
        "reward/schedule/bonus": bonus,
    }


def news(rows: list[dict[str, float]]) -> tuple[list[str], list[dict[str, float]]]:
    alarms, lines, shown = Alarms(), list[str](), list[dict[str, float]]()
    for each in rows:
        shown.append(alarms.update(each))
        lines += alarms.news
    return lines, shown


def test_a_trigger_rate_that_falls_after_the_alternating_bonus_ends_is_named_once() -> None:
    steps = range(1, 81)
    rows = [row(0.9 if step <= 50 else 0.3, bonus=SCAFFOLD(step)) for step in steps]
    lines, shown = news(rows)
    assert len(lines) == 1 and lines[0].startswith("serial collapse alarm, step 5")
    assert "fell from 0.90" in lines[0] and "after step 48" in lines[0]  # the last window with both
    assert shown[-1]["tree/alarm_serial_collapse"] == 1.0 and shown[45]["tree/alarm_serial_collapse"] == 0.0


def test_a_trigger_rate_that_falls_while_the_bonus_is_on_is_no_collapse() -> None:
    rows = [row(0.9 if step <= 20 else 0.3, bonus=SCAFFOLD(min(step, 40))) for step in range(1, 41)]
    assert news(rows)[0] == []
    assert news([row(0.9)] * 20 + [row(0.2)] * 20)[0] == []


def test_a_trigger_rate_that_stays_after_the_bonus_is_no_collapse() -> None:
    assert news([row(0.9, bonus=SCAFFOLD(step)) for step in range(1, 81)])[0] == []


def test_tokens_that_save_no_time_are_named() -> None:
    lines, shown = news([row(0.5)] * WINDOW + [row(0.9, total=150.0, critical=85.0)] * WINDOW)
    assert len(lines) == 1 and lines[0].startswith("spurious parallelism alarm")
    assert "L_total is" in lines[0] and shown[-1]["tree/alarm_spurious_parallelism"] == 1.0


def test_tokens_that_buy_a_shorter_path_are_no_alarm() -> None:
    assert news([row(0.5)] * WINDOW + [row(0.9, total=150.0, critical=60.0)] * WINDOW)[0] == []


def test_an_alarm_that_stops_ringing_may_ring_again() -> None:
    bad, good = [row(0.9, total=150.0)] * WINDOW, [row(0.5)] * WINDOW
    lines, shown = news(good + bad + good + bad)
    assert len(lines) == 2 and shown[29]["tree/alarm_spurious_parallelism"] == 0.0


def test_alarms_are_silent_before_the_first_window_is_full() -> None:
    assert news([row(0.9)] + [row(0.1, total=900.0)] * (WINDOW - 2))[0] == []
