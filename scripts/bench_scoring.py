"""Times scoring: 10,000 recorded trajectories of 10 calls under every preset, verifier excluded, on one core.

    python scripts/bench_scoring.py [--trajectories 10000] [--seed 0]

Every trajectory has 3 blocks of 2 threads between 4 root calls, about 1,100 response tokens in all; groups are of 8.
Timed are the counting of lengths (`measure`) and the reward, in CPU seconds of this one process. The alternative is
parsing the same trajectories from JSON, which any use of stored rollouts has to do as well. The last line is JSON.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from apr_train.compose import CONFIGS, load
from rewards.build import make_reward
from rewards.reward import Reward
from rewards.scored import Group, Scored
from rollout.critical_path import measure
from rollout.trajectory import Call, Segment, Trajectory

GROUP, BLOCKS, WIDTH = 8, 3, 2
Result = TypeVar("Result")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trajectories", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    draw = random.Random(arguments.seed)
    trajectories = [draw_trajectory(draw, f"p{i // GROUP}") for i in range(arguments.trajectories)]
    lines = [trajectory.to_json() for trajectory in trajectories]
    parsing, _ = timed(lambda: [Trajectory.from_json(line) for line in lines])
    verdicts = [draw.random() < 0.7 for _ in trajectories]
    seconds: dict[str, float] = {}
    for file in sorted((CONFIGS / "reward").glob("*.yaml")):
        reward = make_reward(load([f"reward={file.stem}"]).reward.terms)
        seconds[file.stem], _ = timed(lambda reward=reward: score(reward, trajectories, verdicts))
        print(f"{file.stem:24}{seconds[file.stem]:7.2f} s", flush=True)
    worst = max(seconds.values())
    print(f"{'parsing the JSON lines':24}{parsing:7.2f} s")
    result = {"seconds": {name: round(value, 3) for name, value in seconds.items()}, "worst_seconds": round(worst, 3)}
    result |= {"parse_seconds": round(parsing, 3), "parse_over_worst": round(parsing / worst, 2)}
    print(json.dumps(result | {"trajectories": len(trajectories), "calls": len(trajectories[0].calls)}))
    return 0


def score(reward: Reward, trajectories: Sequence[Trajectory], right: Sequence[bool]) -> list[float]:
    """Lengths and rewards of all trajectories, group by group."""
    rewards: list[float] = []
    for start in range(0, len(trajectories), GROUP):
        members = tuple(
            Scored(trajectory, measure(trajectory), "correct" if correct else "wrong")
            for trajectory, correct in zip(
                trajectories[start : start + GROUP], right[start : start + GROUP], strict=True
            )
        )
        rewards += reward(Group(members), step=9)
    return rewards


def draw_trajectory(draw: random.Random, problem: str) -> Trajectory:
    """10 calls: 4 of the root, 3 blocks of 2 threads; with forced headers, closes and joins as a dialect adds them."""
    segments = [Segment("prompt", tuple(range(50)))]
    calls: list[Call] = []

    def add(origin: str, tokens: int, parents: tuple[int, ...], thread: tuple[int, ...] = ()) -> int:
        ids = tuple(draw.randrange(30_000) for _ in range(tokens))
        logprobs = (-0.5,) * tokens if origin == "sampled" else None
        segments.append(Segment(origin, ids, logprobs, parents, thread))  # pyright: ignore[reportArgumentType]
        return len(segments) - 1

    context = [0]
    for block in range(BLOCKS + 1):
        root = add("sampled", draw.randint(50, 110), (context[-1],))
        calls.append(Call(tuple(context), root, "fork" if block < BLOCKS else "final"))
        context.append(root)
        if block == BLOCKS:
            break
        views: list[list[int]] = []
        for k in range(1, WIDTH + 1):
            header = add("forced", 4, (context[-1],), (block, k))
            body = add("sampled", draw.randint(80, 180), (header,), (block, k))
            calls.append(Call((*context, header), body, "join"))
            views.append([header, body])
        join = add("forced", 2, tuple(view[-1] for view in views))
        context += [segment for view in views for segment in view] + [join]
    return Trajectory(problem, "threadweaver", tuple(segments), tuple(calls), "answered")


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """CPU seconds of this process, which other work on the machine does not add to, and the result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


if __name__ == "__main__":
    sys.exit(main())
