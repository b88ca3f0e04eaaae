"""Wrong keys and types on the command line of scripts/train.py."""

from collections.abc import Callable

from bad_inputs import Case

KEYS = "Keys and types"


def load(*overrides: str, ranks: int = 1) -> None:
    """Composes and checks a configuration, its task and its model folder, as a start does first."""
    from apr_train.compose import load as composed
    from apr_train.tasks import make_task
    from apr_train.validate import validate

    config = composed(overrides)
    validate(config, ranks)
    make_task(config.data.task, config.data.options)


def case(
    group: str, name: str, did: str, overrides: str, line: str, before: Callable[[], object] = lambda: None
) -> Case:
    """`overrides` are parted at blanks."""
    words = tuple(overrides.split(" "))

    def act() -> None:
        before()
        load(*words)

    return Case(name, group, did, line, act, words)


CASES = [
    case(
        KEYS,
        "misspelt key",
        "a misspelt key",
        "rollout.max_treads=3",
        "unknown key rollout.max_treads; did you mean rollout.max_threads?",
    ),
    case(KEYS, "misspelt group", "a misspelt group", "modle=tiny", "unknown key modle; did you mean model?"),
    case(
        KEYS,
        "misspelt option",
        "a misspelt option of a group",
        "deepspeed=zero4",
        ("unknown option deepspeed=zero4: did you mean deepspeed=zero3? (known: none, zero0, zero1, zero2, zero3)"),
    ),
    case(
        KEYS,
        "key of another group",
        "a key without its group",
        "rho=0.3",
        "unknown key rho; did you mean reward.terms.acceleration.rho?",
    ),
    case(
        KEYS,
        "truncated sampling",
        "a way to sample that is left out on purpose",
        "rollout.top_p=0.9",
        (
            "rollout.top_p does not exist on purpose: truncated sampling biases the importance "
            "ratio; the whole distribution is sampled, and only rollout.temperature shapes it"
        ),
    ),
    case(
        KEYS,
        "option that is a path",
        "a path where a name belongs",
        "deepspeed=../../etc/passwd",
        "unknown option deepspeed=../../etc/passwd: (known: none, zero0, zero1, zero2, zero3)",
    ),
    case(
        KEYS,
        "group is null",
        "nothing where a name belongs",
        "model=null",
        "model=null: name an option (llama_228m, qwen3_8b, smollm2, tiny)",
    ),
    case(
        KEYS,
        "no key",
        "a value without a key",
        "=3",
        "cannot read '=3'; write key=value, and quote what the shell would change",
    ),
    case(
        KEYS,
        "no value",
        "a key without a value",
        "seed",
        "cannot read 'seed'; write key=value, and quote what the shell would change",
    ),
    case(
        KEYS,
        "missing required",
        "a key that must have a value",
        "data.task=???",
        "data.task has no value; add data.task=... to the command line",
    ),
    case(
        KEYS,
        "word for a number",
        "a word for a number",
        "algorithm.steps=ten",
        "algorithm.steps=ten: it takes a whole number",
    ),
    case(
        KEYS,
        "fraction for a count",
        "a fraction for a count",
        "algorithm.steps=1e-3",
        "algorithm.steps=0.001: it takes a whole number",
    ),
    case(
        KEYS,
        "list for a number",
        "a list for a number",
        "rollout.temperature=[1,2]",
        "rollout.temperature=[1, 2]: it takes a number",
    ),
    case(
        KEYS,
        "values of a sweep",
        "the values of a sweep in one run",
        "seed=1,2",
        "seed=1,2: write seed=[1,2] for a list, seed='1,2' for text, or add --multirun for runs",
    ),
    case(
        KEYS,
        "value for settings",
        "one value for a set of settings",
        "data.options=3",
        ("data.options takes settings by name, e.g. data.options.name=value, and no value of its own"),
    ),
    case(
        KEYS,
        "null",
        "null for what needs a value",
        "rollout.temperature=null",
        "rollout.temperature=null: it needs a value",
    ),
    case(
        KEYS,
        "unknown variable",
        "a variable that is not set",
        "name=${oc.env:APR_NOBODY_SETS_THIS}",
        (
            'name: KeyError raised while resolving interpolation: "Environment variable '
            "'APR_NOBODY_SETS_THIS' not found\""
        ),
    ),
]
