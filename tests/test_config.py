"""Every shipped configuration composes; every mistake on the command line is one line that names the nearest key."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from conftest import ROOT

from apr_train import compose
from apr_train.compose import CONFIGS, load
from apr_train.config import Config, ConfigError, ModelConfig
from apr_train.plan import Sizes, memory, micro_batch_tokens, plan, sizes_of
from apr_train.tasks.arithmetic import ArithmeticOptions
from apr_train.tasks.base import TaskError
from apr_train.tasks.corpus import CorpusOptions
from apr_train.tasks.countdown import CountdownOptions
from apr_train.tasks.countdown_search import SearchOptions
from apr_train.tasks.gym import GymOptions
from apr_train.tasks.jsonl import JsonlOptions
from apr_train.tasks.multiplication import MultiplicationOptions
from apr_train.tasks.set_intersection import SetIntersectionOptions
from apr_train.tasks.sorting import SortingOptions
from apr_train.validate import CHOICES, check_model_folder, validate

OPTIONS = sorted(f"{file.parent.name}={file.stem}" for file in CONFIGS.glob("*/*.yaml"))
PLAIN = {"name", "output_dir", "seed", "dry_run", "resume"}
GROUPS = {field.name for field in fields(Config)} - PLAIN | {"experiment", "debug"}
NEEDS = {  # refused alone, on purpose
    "cluster=slurm": ["dry_run=true", "cluster.nodes=2"],
    "algorithm=rao": ["reward=rao"],
    "model=qwen3_8b": ["deepspeed=zero3"],
    "strategy=group_think": ["dialect=parathinker"],
    "strategy=hogwild": ["dialect=parathinker", "algorithm.steps=0"],
}
BENCHMARK_DATA = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench", "gsm8k_test")
TASK_OPTIONS = {
    "arithmetic": ArithmeticOptions,
    "multiplication": MultiplicationOptions,
    "countdown": CountdownOptions,
    "jsonl": JsonlOptions,
    "gsm8k": JsonlOptions,
    **dict.fromkeys((*BENCHMARK_DATA, "math"), JsonlOptions),
    "countdown_search": SearchOptions,
    "corpus": CorpusOptions,
    "reasoning_gym": GymOptions,
    "sorting": SortingOptions,
    "set_intersection": SetIntersectionOptions,
}


@pytest.fixture(autouse=True)
def smollm2_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Model folders are looked for below the working folder; here is one that looks fetched."""
    monkeypatch.chdir(tmp_path)
    make_model_folder(tmp_path / "outputs/models/smollm2-135m-instruct", 8192)


def make_model_folder(folder: Path, positions: int) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": positions}))
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "tokenizer.json").write_text("{}")


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(overrides)
    return str(error.value)


# Shipped files


def test_there_is_an_option_in_every_group() -> None:
    assert {option.split("=")[0] for option in OPTIONS} == GROUPS


@pytest.mark.parametrize("option", OPTIONS)
def test_every_shipped_option_is_valid_and_its_plan_fits_80_columns(option: str) -> None:
    assert max(map(len, plan(load([option, *NEEDS.get(option, [])]), ranks=2).splitlines())) <= 80


@pytest.mark.parametrize("debug", [o for o in OPTIONS if o.startswith("debug=")])
@pytest.mark.parametrize("experiment", [o for o in OPTIONS if o.startswith("experiment=")])
def test_every_experiment_can_be_debugged(experiment: str, debug: str) -> None:
    assert load([experiment, debug]).logger.wandb == "disabled"


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_yaml_says_what_it_is_first(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# ")


@pytest.mark.parametrize(("name", "schema"), TASK_OPTIONS.items())
def test_every_task_option_can_be_overridden_without_a_plus(name: str, schema: type) -> None:
    assert set(load([f"data={name}"]).data.options) == {field.name for field in fields(schema)}


def test_choices_are_the_names_that_exist() -> None:
    from apr_train.config import PUBLIC_MASKS
    from apr_train.tasks import make_task
    from rollout.dialects import DIALECTS

    files = {file.stem for file in (CONFIGS / "dialect").glob("*.yaml")}
    assert files == {*DIALECTS, *(f"{preset}_as_published" for preset in PUBLIC_MASKS)}
    assert CHOICES["dialect.mask"] == ("exact", *sorted(PUBLIC_MASKS))
    for task in set(CHOICES["data.task"]) - {"jsonl"}:
        assert make_task(task, {}).name == task
    with pytest.raises(TaskError, match="there is no file"):
        make_task("jsonl", {"path": "nowhere.jsonl"}).problems("train", 1, 0)


def test_the_baseline_differs_from_the_quickstart_in_form_alone() -> None:
    ours, baseline = load(["experiment=quickstart"]), load(["experiment=sequential_baseline"])
    for same in ("model", "data", "algorithm", "rollout", "deepspeed", "eval", "seed"):
        assert getattr(ours, same) == getattr(baseline, same)
    assert (baseline.dialect.name, list(baseline.reward.terms)) == ("sequential", ["outcome"])


# Precedence


def test_command_line_beats_debug_beats_experiment_beats_group() -> None:
    assert load(["experiment=quickstart"]).sft.steps != 2
    assert load(["experiment=quickstart", "debug=default"]).sft.steps == 2
    assert load(["experiment=quickstart", "debug=default", "sft.steps=7"]).sft.steps == 7


def test_output_dir_follows_the_name() -> None:
    assert load(["name=mine"]).output_dir == "outputs/mine"


# Mistakes of the command line

KNOWN_REWARDS = f"(known: {', '.join(sorted(file.stem for file in (CONFIGS / 'reward').glob('*.yaml')))})"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.max_treads=3", "unknown key rollout.max_treads; did you mean rollout.max_threads?"),
        ("+reward.foo=1", "unknown key reward.foo; reward has terms"),
        ("++reward.tems=1", "unknown key reward.tems; did you mean reward.terms?"),
        ("reward.terms.acceleration.rh0=1", "reward.terms.acceleration has no option 'rh0': did you mean 'rho'?"),
        ("reward.terms.outcome.wieght=1", "reward.terms.outcome has no option 'wieght': did you mean 'weight'?"),
        (
            "reward.terms.acceleration=1",
            "reward.terms.acceleration=1: a term is a mapping of settings; remove one with ~reward.terms.acceleration",
        ),
        ("sed=3", "unknown key sed; did you mean seed?"),
        ("rho=0.3", "unknown key rho; did you mean reward.terms.acceleration.rho?"),
        ("modle=tiny", "unknown key modle; did you mean model?"),
        ("experimnt=quickstart", "unknown key experimnt; did you mean experiment?"),
        ("data.options.part_max=4", "unknown key data.options.part_max; did you mean data.options.parts_max?"),
        ("dialect.zzzzz=1", "unknown key dialect.zzzzz; dialect has name, join, mask, options"),
        ("reward=otcome", f"unknown option reward=otcome: did you mean reward=outcome? {KNOWN_REWARDS}"),
        ("reward=zzz", f"unknown option reward=zzz: {KNOWN_REWARDS}"),
        ("reward.terms.acceleration.rho=abc", "reward.terms.acceleration, option rho: 'abc' is not float"),
        ("rollout.temperature=abc", "rollout.temperature=abc: it takes a number"),
        ("algorithm.steps=2.5", "algorithm.steps=2.5: it takes a whole number"),
        ("dry_run=maybe", "dry_run=maybe: it takes true or false"),
        ("rollout.temperature=null", "rollout.temperature=null: it needs a value"),
        (
            "+model.lora.dropout=0.1",
            "model.lora.dropout does not exist on purpose: the trainer would score another policy than the one that is "
            "sampled",
        ),
        ("seed", "cannot read 'seed'; write key=value, and quote what the shell would change"),
        ("data.task=???", "data.task has no value; add data.task=... to the command line"),
        ("name=${nobody}", "name: Interpolation key 'nobody' not found"),
    ],
)
def test_a_mistake_names_the_nearest(override: str, message: str) -> None:
    assert refused(override) == message


@pytest.mark.parametrize("key", ["rollout.top_p", "+rollout.top_k", "rollout.min_p", "top_p", "+algorithm.top_p"])
def test_truncated_sampling_is_refused_with_the_reason(key: str) -> None:
    assert "truncated sampling biases the importance ratio" in refused(f"{key}=0.9")


def test_an_unknown_key_in_a_yaml_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from apr_train import compose

    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "configs/reward/mine.yaml").write_text("tems: {}\n")
    monkeypatch.setattr(compose, "CONFIGS", tmp_path / "configs")
    assert refused("reward=mine") == "unknown key reward.tems; did you mean reward.terms?"


def test_a_reward_that_cannot_be_built_is_refused_before_anything_is_run() -> None:
    term = "reward.terms.acceleration"
    assert refused(f"{term}.form=rato") == f"{term}, option form: 'rato' is not one of eta, ratio"
    assert refused(f"{term}.floor=1") == f"{term}: floor 1 is above cap 0.2"
    assert refused(f"{term}.gate=[corect]") == f"{term}.gate: 'corect' does not exist, did you mean 'correct'?"
    assert refused(f"{term}.schedule.kind=linar") == (
        f"{term}.schedule of kind 'linar' does not exist: did you mean 'linear'?"
    )
    with pytest.raises(ConfigError, match=r"reward\.terms is empty"):
        load(["~reward.terms.outcome", f"~{term}"])


# Meaning


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "dialect.mask=multiverse",
            "not threadweaver: use dialect=multiverse_as_published",
        ),
        ("cluster=slurm", "starts nothing by itself: add dry_run=true"),
        ("cluster.server_nodes=1", "needs rollout=vllm_http, and must be below cluster.nodes=1"),
        ("cluster.server_nodes=1 rollout=vllm_http", "must be below cluster.nodes=1"),
        ("cluster.launcher=slrm", "did you mean slurm?"),
        ("deadline.rollout=9000", "deadline.collective=5400 must be at least"),
        ("deadline.update=-1", "deadline.update=-1.0 must be at least 0"),
        ("deadline.rollout=0", "deadline.collective=5400 must be at least"),
        ("dialect.mask=exakt", "did you mean exact?"),
        ("algorithm.loss=grpo", "use dapo or cispo: it averages within each row"),
        ("algorithm.loss=bnpo", "how rows are split"),
        ("algorithm.loss=dr_grpo", "use dapo or cispo"),
        ("algorithm.loss=dap", "did you mean dapo?"),
        ("algorithm.scale_rewards=std", "(known: none, group, batch)"),
        ("algorithm.credit=node_local", "needs a term of kind node_success"),
        ("algorithm.credit=rot_only", "did you mean root_only?"),
        ("algorithm.group_size=1", "must be at least 2: an advantage compares"),
        ("algorithm.micro_batches=3", "must divide a rank's 16 prompts"),
        ("algorithm.learning_rate=0", "must be above 0"),
        ("algorithm.gap_stop=0.001", "gap_stop must not be below"),
        ("algorithm.epsilon_low=1", "must be below 1"),
        ("rollout.temperature=0", "must be above 0: training needs samples"),
        ("rollout.max_response_tokens=1024", "leaves no room for a prompt"),
        ("rollout.max_response_tokens=32", "rollout.answer_tokens=32 must be below rollout.max_response_tokens=32"),
        ("rollout.max_critical_tokens=16", "must be below rollout.max_critical_tokens=16"),
        ("rollout.max_thread_tokens=0", "must be at least 1"),
        ("rollout.engine=vlm", "did you mean vllm?"),
        ("rollout.engine_restarts=-1", "must be at least 0"),
        ("rollout.call_seconds=0", "must be above 0"),
        ("rollout.urls=[] rollout=vllm_http", "needs its servers"),
        ("rollout.urls=[http://127.0.0.1:8000/v1]", "only for rollout=vllm_http"),
        ("rollout.gpu_memory_utilization=1.0", "must be below 1"),
        ("model.dtype=float16", "did you mean bfloat16?"),
        ("model.attention=flash", "(known: tree, sdpa)"),
        ("model.kv_heads=3", "must be a multiple of model.kv_heads"),
        ("model.head_dim=31", "must be even"),
        ("model.thread_vectors=-1", "must be at least 0"),
        ("model.lora.rank=-1", "must be at least 0"),
        ("model.lora.alpha=0", "must be above 0"),
        ("model.lora.rnk=4", "did you mean model.lora.rank?"),
        ("model.thread_vectors=8", "only a stitched join keeps a thread's keys: set dialect.join=stitched"),
        ("model.thread_vectors=8 dialect=parathinker strategy=group_think", "set strategy=fork_join, or 0 vectors"),
        ("strategy=group_think", "needs strategy.stride with dialect threadweaver"),
        ("strategy=group_think dialect=npr", "not npr with join stitched"),
        ("strategy=hogwild dialect=multiverse dialect.join=transcript", "not multiverse with join transcript"),
        ("strategy=group_think dialect=parason strategy.stride=9", "threads that neither fork nor race"),
        ("strategy=group_think dialect=recursive strategy.stride=9", "not recursive with join message"),
        ("strategy=group_think dialect=sequential strategy.stride=9", "not sequential with join transcript"),
        ("model.thread_vectors=8 dialect=apr", "take a dialect that has one"),
        ("model.thread_vectors=8 dialect=multiverse_as_published", "set dialect.mask=exact"),
        ("model.thread_vectors=7 dialect=multiverse", "is less than the 8 threads that a block may have"),
        (
            "model.thread_vectors=3 dialect=parathinker dialect.join=stitched",
            "is less than the 4 threads that a block may have",
        ),
        ("deepspeed.stage=4", "use null, 0, 1, 2 or 3"),
        ("deepspeed.offload_optimizer=true", "needs stage 1, 2 or 3"),
        ("dialect.name=threadweever", "did you mean threadweaver?"),
        ("data.task=arithmetik", "did you mean arithmetic?"),
        ("data.train_problems=8", "algorithm.prompts_per_step=16 is more than data.train_problems=8"),
        ("sft.parallel_share=1.5", "must be in [0, 1]"),
        ("logger.wandb=off", "did you mean offline?"),
        ("name=a/b", "without /"),
        ("name=''", "without /"),
    ],
)
def test_a_value_that_cannot_train_rightly_is_refused(override: str, words: str) -> None:
    message = refused(*override.split())
    assert words in message
    assert override.split("=")[0].removeprefix("+") in message
    assert "\n" not in message


def test_vectors_for_every_thread_of_a_block_are_enough() -> None:
    from apr_train.sampler import engine_of

    stitched = ["dialect=parathinker", "dialect.join=stitched", "dialect.options.paths=6"]
    config = load([*stitched, "model.thread_vectors=6"])
    assert engine_of(config) == "torch"
    for engine in ("vllm", "vllm_http"):
        message = refused(*stitched, "model.thread_vectors=6", f"rollout={engine}")
        assert message == f"model.thread_vectors=6: rollout.engine={engine} cannot add them: use rollout=torch"
    assert "less than the 5 threads" in refused("dialect=multiverse", "rollout.max_threads=5", "model.thread_vectors=4")


def test_cispo_needs_a_weight_limit_not_a_clip_width() -> None:
    assert load(["algorithm=cispo"]).algorithm.epsilon_high == 5.0
    assert "about 5" in refused("algorithm=cispo", "algorithm.epsilon_high=0.28")


def test_prompts_are_whole_on_every_rank() -> None:
    config = load(["algorithm.prompts_per_step=6"])
    validate(config, ranks=3)
    with pytest.raises(ConfigError, match="multiple of the number of ranks, 4"):
        validate(config, ranks=4)


def test_a_server_that_no_rank_would_ask_is_refused() -> None:
    two = ["rollout=vllm_http", "rollout.urls=[http://127.0.0.1:8000/v1,http://127.0.0.1:8001/v1]"]
    assert "2 servers, more than there are ranks (1)" in refused(*two)
    config = load(two[:1])
    config.rollout.urls.append("http://127.0.0.1:8001/v1")
    for ranks in (2, 4):
        validate(config, ranks)
    assert "names a server twice" in refused(two[0], "rollout.urls=[http://127.0.0.1:8000/v1,http://127.0.0.1:8000/v1]")


def test_a_dead_server_is_noticed_before_a_deadline_ends_the_run_unsaved() -> None:
    http = ["rollout=vllm_http"]
    load([*http, "deadline=none"])
    load(["deadline.sync=600"])  # an engine in this process is not called over a wire
    for wait in ("sync", "rollout"):
        assert "rollout.call_seconds=600 must be below" in refused(*http, f"deadline.{wait}=600")
    assert "in which one rank sends the weights" in refused(*http, "deadline.sync=6000")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_model_folder(folder, positions=512)
    check_model_folder(ModelConfig(path=str(folder), max_context=512))
    with pytest.raises(ConfigError, match="longer than the model's own 512 positions"):
        check_model_folder(ModelConfig(path=str(folder), max_context=513))
    with pytest.raises(ConfigError, match="is a file"):
        check_model_folder(ModelConfig(path=str(folder / "config.json")))
    for file, words in (("tokenizer.json", "tokenizer files"), ("model.safetensors", "weights"), ("config.json", "")):
        (folder / file).unlink()
        with pytest.raises(ConfigError, match=f"is not a model folder: it has no {words}"):
            check_model_folder(ModelConfig(path=str(folder)))
    with pytest.raises(ConfigError, match="there is no such folder"):
        check_model_folder(ModelConfig(path=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="there is no such folder"):
        check_model_folder(ModelConfig(path="outputs/typo"))  # `outputs` is a folder here, not an owner on the hub
    check_model_folder(ModelConfig(path="Qwen/Qwen3-8B"))  # the hub's to find


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "must hold an object, not a list"),
        ('"qwen"', "must hold an object, not a str"),
        ("{", "is not JSON"),
        ('{"max_position_embeddings": "512"}', "is '512', not a whole number"),
    ],
)
def test_a_config_json_that_says_nothing_is_refused(tmp_path: Path, text: str, words: str) -> None:
    folder = tmp_path / "model"
    make_model_folder(folder, positions=512)
    for unlimited in ("{}", '{"max_position_embeddings": null}'):
        (folder / "config.json").write_text(unlimited)
        check_model_folder(ModelConfig(path=str(folder)))
    (folder / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=words) as error:
        check_model_folder(ModelConfig(path=str(folder)))
    assert str(error.value).startswith(f"model.path={folder}: ")


# The plan


def test_memory_is_sharded_as_zero_says() -> None:
    sizes = Sizes(
        layers=1, hidden=4, heads=1, kv_heads=1, head_dim=4, intermediate=8, vocabulary=10, tied=True
    )  # 212 parameters
    assert sizes.parameters == 212

    def bytes_at(stage: str, ranks: int, dtype: str = "bfloat16") -> tuple[float, float, float]:
        need = memory(load([f"deepspeed.stage={stage}", f"model.dtype={dtype}"]), sizes, ranks)
        return need.weights, need.gradients, need.adam

    assert bytes_at("null", 2, "float32") == (848, 848, 1696)
    assert bytes_at("0", 2) == (424, 424, 2544)
    assert bytes_at("1", 2) == (424, 424, 1272)
    assert bytes_at("2", 2) == (424, 212, 1272)
    assert bytes_at("3", 2) == (212, 212, 1272)


def test_adapters_need_gradients_and_states_of_their_own_size_alone() -> None:
    """Rank 2 of all seven layers: 2 * (2*8 + 2*8 + 3*12) = 136 beside 212 frozen weights, and 40 of a table."""
    sizes = Sizes(layers=1, hidden=4, heads=1, kv_heads=1, head_dim=4, intermediate=8, vocabulary=10, tied=True)

    def bytes_at(*overrides: str) -> tuple[float, float, float]:
        need = memory(load(["deepspeed.stage=2", "model.lora.rank=2", *overrides]), sizes, 2)
        return need.weights, need.gradients, need.adam

    assert bytes_at() == (212 * 4, 176 * 4 / 2, 176 * 12 / 2)
    assert bytes_at("model.lora.tags=false") == (212 * 4, 136 * 4 / 2, 136 * 12 / 2)
    assert bytes_at("model.lora.tags=false", "model.lora.targets=[q_proj]") == (212 * 4, 16 * 4 / 2, 16 * 12 / 2)
    told = plan(load(["model.lora.rank=16"]), ranks=1)
    assert "trained             LoRA of rank 16" in told and max(map(len, told.splitlines())) <= 80


def test_micro_batch_tokens_are_those_of_the_docstring() -> None:
    config = load(["algorithm.prompts_per_step=16", "algorithm.group_size=8", "algorithm.micro_batches=4"])
    assert config.rollout.max_response_tokens == 768
    assert micro_batch_tokens(config, ranks=2) == 12_288


def test_parameters_are_counted_as_the_model_has_them() -> None:
    from apr_train.model import character_tokenizer, load_model

    config = load([]).model
    sizes = sizes_of(config)
    assert sizes is not None
    fresh = load_model(replace(config, vocabulary=sizes.vocabulary), character_tokenizer())
    real = sum(weight.numel() for weight in fresh.parameters())
    assert sizes.parameters == pytest.approx(real, rel=0.01)


def test_a_model_that_is_not_here_has_no_estimate() -> None:
    text = plan(load(["model.path=nobody/nothing"]), ranks=1)
    assert "size unknown" in text
    assert "unknown: the model's config.json is not on this machine" in text


# The command


def command(*overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/train.py"), *overrides],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    "mistake", ["rollout.max_treads=3", "reward=zzz", "reward.terms.acceleration.rh0=1", "data.options.parts_max=0"]
)
def test_the_command_tells_a_mistake_in_one_line(mistake: str) -> None:
    done = command(mistake, "dry_run=true")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_dry_run_prints_configuration_and_plan_and_leaves_nothing(tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = command("experiment=quickstart", "reward.terms.acceleration.rho=0.3", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "output_dir: outputs/quickstart" in done.stdout
    assert "acceleration: rho 0.3, cap 0.2, gate [correct]" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_under_torchrun_only_rank_0_speaks() -> None:
    other = command("dry_run=true", RANK="1", WORLD_SIZE="2")
    assert (other.returncode, other.stdout) == (0, "")
    wrong = command("rollout.max_treads=1", RANK="1", WORLD_SIZE="2")
    assert (wrong.returncode, wrong.stderr) == (2, "")
    odd = command("algorithm.prompts_per_step=3", RANK="0", WORLD_SIZE="2")
    assert "multiple of the number of ranks, 2" in odd.stderr


def test_cfg_job_prints_the_configuration() -> None:
    done = command("--cfg", "job", "experiment=quickstart")
    assert done.returncode == 0, done.stderr
    assert "name: quickstart" in done.stdout


def test_only_what_a_user_can_mend_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"), compose.one_line_errors():
        raise TaskError("gsm8k.jsonl:12:\nempty line")
    assert capsys.readouterr().err == "error: gsm8k.jsonl:12: empty line\n"
    with pytest.raises(ValueError, match="a bug"), compose.one_line_errors():
        raise ValueError("a bug")


def test_what_one_rank_found_while_training_is_told_by_that_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="2"), compose.one_line_errors(every_rank=True):
        raise TaskError("no such file")
    assert capsys.readouterr().err == "error: rank 1: no such file\n"
    with pytest.raises(SystemExit, match="2"), compose.one_line_errors():
        raise TaskError("no such file")
    assert capsys.readouterr().err == ""  # what every rank finds is told by the first


@pytest.mark.parametrize("script", ["train", "self_train", "evaluate"])
def test_what_a_script_runs_after_the_checks_is_told_by_every_rank(script: str) -> None:
    text = (ROOT / f"scripts/{script}.py").read_text()
    told = r"with compose\.one_line_errors\(every_rank=True, folder=config\.output_dir\):\n"
    assert re.search(told + r" +(summary = (self_train|evaluate_model)|run)\(config\)", text)


@pytest.mark.parametrize("dialect", ["threadweaver", "npr", "parallel_r1", "dc_cot", "parathinker"])
def test_lockstep_is_not_refused_where_threads_neither_fork_nor_race(dialect: str) -> None:
    own = [f"dialect={dialect}", "dialect.join=transcript", "strategy=group_think"]
    load([*own, "strategy.stride=99"])
    with pytest.raises(ConfigError, match=r"beyond model\.max_context=1024, so that no block would ever run"):
        load([*own, "strategy.stride=1024"])
