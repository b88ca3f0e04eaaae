"""Computes a step that was skipped again and says where it went wrong; the last line is JSON.

python scripts/replay_batch.py outputs/run/bad_steps/rl/step_12 --rank 1
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

from apr_train.compose import one_line_errors

SHOWN = 4


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", type=Path, help="a folder below <output_dir>/bad_steps")
    parser.add_argument("--rank", type=int, default=0, help="whose batches; each rank wrote its own")
    arguments = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # on a CPU, wherever the run was
    with one_line_errors():
        from apr_train.replay import replay  # seconds of imports, which a wrong option need not wait for

        found = replay(arguments.step, arguments.rank)
    print(f"weights that are no numbers: {_some(found.weights)}")
    for number, each in enumerate(found.batches):
        print(f"micro-batch {number}: loss {each.loss:.4g}, gradient norm {each.gradient_norm:.4g}")
        print(f"  first module: {each.layer or 'none'}")
        print(f"  calls whose log-probs are no numbers: {_some([str(row) for row in each.rows])}")
        print(f"  gradients that are no numbers: {_some(each.gradients)}")
    if not found.reproduced:
        print("all of it is finite here: try the other ranks; if they are too, the run's hardware differs")
    print(json.dumps({"reproduced": found.reproduced, **asdict(found)}))


if __name__ == "__main__":
    main()
