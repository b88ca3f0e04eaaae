"""Wrong rewards and dialects, and wrong files of the user's that hold one."""

from unittest.mock import patch

from bad_configs import case
from bad_inputs import Case, write

PLUGINS = "Rewards, dialects and their files"
DIALECT = "class Mine:\n    name = 'mine'\n"
TERM = "reward.terms.acceleration"


def half_a_verifier() -> None:
    """What was a whole one before verifiers said what the answer is."""
    from apr_train.tasks import make_task
    from apr_train.tasks.multiplication import Multiplication

    with patch.object(Multiplication, "verifier", staticmethod(lambda response, reference: "wrong")):
        make_task("multiplication", {})


CASES = [
    case(
        PLUGINS,
        "misspelt setting",
        "a misspelt setting of a term",
        f"{TERM}.rh0=1",
        "reward.terms.acceleration has no option 'rh0': did you mean 'rho'?",
    ),
    case(
        PLUGINS,
        "unknown kind",
        "a kind of term that is not there",
        f"{TERM}.kind=accelerate",
        ("reward.terms.acceleration of kind 'accelerate' does not exist: did you mean 'acceleration'?"),
    ),
    case(
        PLUGINS,
        "a target to call",
        "the name of a function to call",
        f"{TERM}._target_=os.system",
        (
            "reward.terms.acceleration has no option '_target_': use one of rho, form, weight, "
            "gate, floor, cap, standardise, schedule, scope"
        ),
    ),
    case(
        PLUGINS,
        "gate",
        "a misspelt gate",
        f"{TERM}.gate=[corect]",
        "reward.terms.acceleration.gate: 'corect' does not exist, did you mean 'correct'?",
    ),
    case(
        PLUGINS,
        "bounds",
        "bounds that leave nothing",
        f"{TERM}.floor=1",
        "reward.terms.acceleration: floor 1 is above cap 0.2",
    ),
    case(
        PLUGINS,
        "NaN in a term",
        "no number in a term",
        f"{TERM}.rho=nan",
        "reward.terms.acceleration, option rho: nan has a number that is not finite",
    ),
    case(
        PLUGINS,
        "no term",
        "no term at all",
        f"~reward.terms.outcome ~{TERM}",
        "reward.terms is empty: nothing would be learnt; take a preset such as reward=outcome",
    ),
    case(
        PLUGINS,
        "schedule",
        "a schedule that never ends",
        f"{TERM}.schedule={{kind:linear,steps:0}}",
        "reward.terms.acceleration.schedule: a linear schedule takes at least one step, not 0",
    ),
    case(
        *(PLUGINS, "stages", "stages that do not rise"),
        f"{TERM}.schedule={{kind:piecewise,stages:[{{until:5,schedule:{{}}}},{{until:3,schedule:{{}}}}]}}",
        ("reward.terms.acceleration.schedule, stage 2: until=3; they rise, and only the last stage has none"),
    ),
    case(
        *(PLUGINS, "no baseline", "a stored baseline that is not there"),
        "+reward.terms.latency={reference:stored,baseline:base.jsonl}",
        "baseline base.jsonl: no such file; scripts/score_rollouts.py --write-baseline makes one",
    ),
    case(
        PLUGINS,
        "credit alone",
        "a credit that needs a term",
        "algorithm.credit=node_local",
        "algorithm.credit=node_local needs a term of kind node_success: take reward=rao",
    ),
    case(
        PLUGINS,
        "dialect",
        "a misspelt dialect",
        "dialect.name=threadweever",
        ("dialect.name=threadweever: there is no dialect 'threadweever'; did you mean threadweaver?"),
    ),
    case(
        PLUGINS,
        "dialect option",
        "a misspelt setting of a dialect",
        "+dialect.options.conclude=true",
        ("dialect.name=threadweaver: dialect threadweaver has no option 'conclude': did you mean 'conclusion'?"),
    ),
    case(
        PLUGINS,
        "join",
        "a join that the dialect does not have",
        "dialect=npr dialect.join=message",
        "dialect.join=message does not exist: (known: stitched, transcript)",
    ),
    case(
        PLUGINS,
        "paths",
        "too many paths",
        "dialect=parathinker dialect.options.paths=100",
        "dialect.name=parathinker: dialect.options.paths=100 must be 1 to 16",
    ),
    case(
        PLUGINS,
        "mask of another",
        "a published trainer of another dialect",
        "dialect.mask=multiverse",
        (
            "dialect.mask=multiverse is for dialect.name=multiverse, not threadweaver: use "
            "dialect=multiverse_as_published, or mask=exact"
        ),
    ),
    case(
        PLUGINS,
        "no stride",
        "threads in lockstep in a dialect that may fork again",
        "strategy=group_think",
        (
            "strategy=group_think needs strategy.stride with dialect threadweaver, which may fork again: all blocks "
            "have one, as far as a thread may get (rollout.max_thread_tokens and its header)"
        ),
    ),
    case(
        PLUGINS,
        "lockstep and nesting",
        "threads in lockstep that fork",
        "strategy=group_think dialect=multiverse dialect.join=transcript",
        (
            "strategy=group_think needs a join that reads a block as text, and threads that neither fork nor race, not "
            "multiverse with join transcript: take dialect=threadweaver or parathinker"
        ),
    ),
    case(
        PLUGINS,
        "no file",
        "a dialect's file that is not there",
        "dialect.name=mine.py:Mine",
        "dialect.name=mine.py:Mine: there is no such Python file",
    ),
    case(
        *(
            PLUGINS,
            "syntax",
            "a dialect's file that is no Python",
            "dialect.name=mine.py:Mine",
            ("dialect.name=mine.py:Mine cannot be imported (SyntaxError: expected ':' (mine.py, line 1))"),
        ),
        lambda: write("mine.py", "class Mine\n"),
    ),
    case(
        *(
            PLUGINS,
            "import",
            "a dialect's file that needs another module",
            "dialect.name=mine.py:Mine",
            ("dialect.name=mine.py:Mine cannot be imported (ModuleNotFoundError: No module named 'nobody_has_this')"),
        ),
        lambda: write("mine.py", "import nobody_has_this\n"),
    ),
    case(
        *(
            PLUGINS,
            "half a dialect",
            "a dialect without its methods",
            "dialect.name=mine.py:Mine",
            "dialect.name=mine.py:Mine is no dialect, it has no joins: see docs/dialects.md",
        ),
        lambda: write("mine.py", DIALECT),
    ),
    Case(
        "half a verifier",
        PLUGINS,
        "a task whose verifier is a plain function",
        "task multiplication: its verifier has no method answer(response): see docs/howto/task.md",
        half_a_verifier,
    ),
]
