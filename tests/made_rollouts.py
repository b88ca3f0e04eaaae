"""Recorded rollouts for the viewer's tests: random call DAGs, large files, hostile text."""

import random
from collections.abc import Sequence

from rollout.trajectory import Call, Outcome, Segment, Trajectory
from rollout.viewer import Recorded

VERDICTS = ("correct", "wrong", "unparsable", "timeout", "error")
OUTCOMES: tuple[Outcome, ...] = ("answered", "forced_answer", "malformed", "truncated")
HOSTILE = (
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=1</script>",
    '"><img src=x onerror="window.pwned=1">',
    "<!--<script>",
    "</style><style>body{display:none}</style>",
    "<svg onload=window.pwned=1>",
    "{{script}}{{data}}",
    "\u2028\u2029'\"`${window.pwned=1}",
    "javascript:window.pwned=1",
    '<iframe src="https://example.com/"></iframe><link rel=prefetch href="https://example.com/">',
    "]]>&lt;script&gt;",
    "\x00\x1b[2J\u202egpj.exe\ufeff\ud800",
)
"""Model text that a careless page would run, load or be broken by."""


def hostile_text(ids: Sequence[int]) -> str:
    """A tokenizer whose every token is an attack."""
    return "".join(HOSTILE[token % len(HOSTILE)] for token in ids)


def random_dag(rng: random.Random, segments: int = 12, longest: int = 6) -> Trajectory:
    """Any DAG that a recording may hold, tree or not: every segment waits for up to three earlier ones."""
    names: list[tuple[int, ...]] = [()]
    found = [Segment("prompt", tuple(rng.choices(range(50), k=3)))]
    calls: list[Call] = []
    for index in range(1, segments):
        if rng.random() < 0.4:
            above = rng.choice(names)
            names.append((*above, rng.randint(0, 2), rng.randint(1, 3)))
        parents = tuple(sorted(rng.sample(range(index), min(index, rng.randint(1, 3)))))
        ids = tuple(rng.choices(range(50), k=rng.randint(0, longest)))
        if rng.random() < 0.3:
            found.append(Segment("forced", ids, None, parents, rng.choice(names)))
            continue
        nats = tuple(-rng.expovariate(1.0) for _ in ids)
        found.append(Segment("sampled", ids, nats, parents, rng.choice(names)))
        calls.append(Call(tuple(range(index)), index, rng.choice(("fork", "join", "final"))))
    return Trajectory("p", "test", tuple(found), tuple(calls), "answered")


def forked(rng: random.Random, problem: str, threads: int, size: int, outcome: Outcome = "answered") -> Trajectory:
    """A root that forks once, as the quickstart's policy does."""

    def sampled(count: int, parents: tuple[int, ...], thread: tuple[int, ...] = ()) -> Segment:
        ids = tuple(rng.choices(range(100), k=count))
        return Segment("sampled", ids, tuple(-rng.expovariate(3.0) for _ in ids), parents, thread)

    segments = [Segment("prompt", tuple(rng.choices(range(100), k=12))), sampled(size, (0,))]
    calls = [Call((0,), 1, "fork" if threads else "final")]
    for k in range(1, threads + 1):
        segments += [
            Segment("forced", (1, 2, 3), None, (1,), (0, k)),
            sampled(rng.randint(1, 2 * size), (len(segments),), (0, k)),
        ]
        calls.append(Call((0, 1, len(segments) - 2), len(segments) - 1, "join"))
    if threads:
        segments += [
            Segment("forced", (4, 5), None, tuple(range(3, len(segments), 2))),
            sampled(size // 2 + 1, (len(segments),)),
        ]
        calls.append(Call(tuple(range(len(segments) - 1)), len(segments) - 1, "final"))
    return Trajectory(problem, "threadweaver", tuple(segments), tuple(calls), outcome)


def many(count: int, seed: int = 0, group: int = 8, size: int = 30) -> list[Recorded]:
    """Groups of rollouts over several steps, with every verdict, outcome and width."""
    rng, found = random.Random(seed), []
    for index in range(count):
        step, problem = 10 * (1 + index // (8 * group)), f"bench-{index // group:04d}"
        verdict = rng.choices(VERDICTS, (6, 3, 1, 0.3, 0.3))[0]
        trajectory = forked(rng, problem, rng.choice((0, 0, 2, 3, 5)), size, rng.choices(OUTCOMES, (8, 1, 1, 1))[0])
        judged = verdict not in ("timeout", "error")
        right, fast = float(verdict == "correct"), round(rng.random() * 0.2, 3)
        terms = {"outcome": right, "acceleration": fast} if judged else {}
        reward = sum(terms.values()) if judged else None
        found.append(Recorded(step, trajectory, verdict, reward, rng.uniform(-1, 1), None, terms))
    return found
