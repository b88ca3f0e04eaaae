"""No file of ours runs text or data as code, opens a port to everybody, or waits for a server for ever."""

import ast
from collections.abc import Iterator

import pytest
from conftest import ROOT

FOLDERS = ("apr_train", "rewards", "rollout", "scripts", "slurm", "tests")
FILES = sorted(str(file.relative_to(ROOT)) for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))

CODE_FROM_DATA = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")
"""Modules that run what they read. torch, numpy, yaml and pandas can, when asked to; those calls are below."""
TEXT_AS_CODE = (
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
)
FLAGS = ("shell", "trust_remote_code", "allow_pickle")
"""Keywords that only False is right for: what is not written out could be True."""
CALLS = ("get", "post", "put", "patch", "delete", "head", "options", "request", "stream")
EVERYBODY = ".".join("0000")
"""The address of every machine, spelled so that this file does not find itself."""


def breaches(source: str) -> Iterator[str]:
    """What a file does that it may not, one line each. Names are followed through `import .. as` and `from .. import`,
    and not through variables: this finds slips, not malice."""
    tree = ast.parse(source)
    names = dict(imported(tree))
    for module in names.values():
        if module.split(".")[0] in CODE_FROM_DATA:
            yield f"{module.split('.')[0]} runs code from data"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from unsafe(full_name(node.func, names), node)
            yield from hidden(full_name(node.func, names), node)
        elif isinstance(node, ast.keyword) and node.arg in FLAGS:
            yield from flagged(node.arg, node.value)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in FLAGS:
                    yield from flagged(str(key.value), value)
        if binds_everybody(node):
            yield "listens to every machine"


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name in this file, full name) of everything imported anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (
                    (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0], alias.name.split(".")[0])
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def full_name(function: ast.expr, names: dict[str, str]) -> str:
    """`torch.load` for `t.load` after `import torch as t`; empty for anything but dotted names."""
    if not isinstance(function, ast.Name | ast.Attribute):
        return ""
    first, dot, rest = ast.unparse(function).partition(".")
    return (names.get(first, first) + dot + rest).removeprefix("builtins.")


def unsafe(name: str, call: ast.Call) -> Iterator[str]:
    """What is wrong with this call."""
    given = {word.arg: word.value for word in call.keywords}
    if name in TEXT_AS_CODE or (name.startswith("os.") and name[3:].startswith(("exec", "spawn"))):
        yield f"{name} runs text as code"
    if name in ("yaml.load", "yaml.load_all") and "SafeLoader" not in ast.unparse(call):
        yield f"{name} needs SafeLoader"
    if name.startswith(("yaml.unsafe_load", "yaml.full_load")):
        yield f"{name} needs SafeLoader"
    if name == "torch.load" and not is_constant(given.get("weights_only"), True):
        yield "torch.load needs weights_only=True"
    if name.endswith(("read_pickle", "to_pickle")):
        yield f"{name} runs code from data"
    if name == "tempfile.mktemp":
        yield "tempfile.mktemp gives a name that another process can take first"
    library, _, verb = name.rpartition(".")
    waits = (library in ("requests", "httpx") and verb in CALLS) or name in (
        *("urllib.request.urlopen", "urllib.request.urlretrieve", "socket.create_connection"),
        *("httpx.Client", "httpx.AsyncClient"),
    )
    if waits and "timeout" not in given:
        yield f"{name} needs a timeout"


def hidden(name: str, call: ast.Call) -> Iterator[str]:
    """A module taken by `import_module("...")` or `__import__("...")`."""
    if name in ("importlib.import_module", "__import__") and call.args and isinstance(call.args[0], ast.Constant):
        module = str(call.args[0].value)
        if module.split(".")[0] in CODE_FROM_DATA:
            yield f"{module.split('.')[0]} runs code from data"


def flagged(flag: str, value: ast.expr) -> Iterator[str]:
    if not is_constant(value, False):
        yield f"{flag} runs text as code"


def is_constant(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def binds_everybody(node: ast.AST) -> bool:
    """An address of all machines, as an argument, a default or a setting: anywhere but in a comparison."""
    given: list[ast.expr | None] = []
    if isinstance(node, ast.Call):
        given = [*node.args, *(word.value for word in node.keywords)]
        given += [each for one in node.args if isinstance(one, ast.Tuple | ast.List) for each in one.elts]
    elif isinstance(node, ast.Dict):
        given = list(node.values)
    elif isinstance(node, ast.List):
        given = list(node.elts)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        given = [node.value]
    elif isinstance(node, ast.arguments):
        given = [*node.defaults, *node.kw_defaults]
    texts = [each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return any(text == EVERYBODY or text.endswith(f"={EVERYBODY}") for text in texts)


@pytest.mark.parametrize("path", FILES)
def test_no_file_runs_data_as_code_or_waits_for_ever(path: str) -> None:
    assert list(breaches((ROOT / path).read_text())) == []


@pytest.mark.parametrize("script", sorted(str(each.relative_to(ROOT)) for each in (ROOT / "slurm").iterdir()))
def test_no_job_script_evaluates_text(script: str) -> None:
    words = (ROOT / script).read_text().replace(";", " ").split()
    assert "eval" not in words and EVERYBODY not in words


@pytest.mark.parametrize(
    ("line", "breach"),
    [
        ("eval('1 + 1')", "eval runs text as code"),
        ("exec(text)", "exec runs text as code"),
        ("import builtins\nbuiltins.exec(text)", "exec runs text as code"),
        ("code = compile(text, '<model>', 'exec')", "compile runs text as code"),
        ("import pickle", "pickle runs code from data"),
        ("def f():\n    from pickle import loads as read", "pickle runs code from data"),
        ("import dill as json", "dill runs code from data"),
        ("import cloudpickle", "cloudpickle runs code from data"),
        ("import marshal", "marshal runs code from data"),
        ("import shelve", "shelve runs code from data"),
        ("from importlib import import_module\nimport_module('pickle')", "pickle runs code from data"),
        ("__import__('marshal')", "marshal runs code from data"),
        ("subprocess.run('ls', shell=True)", "shell runs text as code"),
        ("subprocess.run('ls', shell=chosen)", "shell runs text as code"),
        ("subprocess.run('ls', **{'shell': True})", "shell runs text as code"),
        ("os.system('ls')", "os.system runs text as code"),
        ("from os import popen as run\nrun('ls')", "os.popen runs text as code"),
        ("os.execv(path, words)", "os.execv runs text as code"),
        ("subprocess.getoutput('ls')", "subprocess.getoutput runs text as code"),
        ("import yaml\nyaml.load(text)", "yaml.load needs SafeLoader"),
        ("yaml.load(text, Loader=yaml.Loader)", "yaml.load needs SafeLoader"),
        ("yaml.unsafe_load(text)", "yaml.unsafe_load needs SafeLoader"),
        ("torch.load(f)", "torch.load needs weights_only=True"),
        ("torch.load(f, weights_only=False)", "torch.load needs weights_only=True"),
        ("import torch as t\nt.load(f, weights_only=chosen)", "torch.load needs weights_only=True"),
        ("from torch import load\nload(f)", "torch.load needs weights_only=True"),
        ("AutoModel.from_pretrained(p, trust_remote_code=True)", "trust_remote_code runs text as code"),
        ("settings = {'trust_remote_code': True}", "trust_remote_code runs text as code"),
        ("np.load(f, allow_pickle=True)", "allow_pickle runs text as code"),
        ("pd.read_pickle(f)", "pd.read_pickle runs code from data"),
        ("from tempfile import mktemp\nmktemp()", "tempfile.mktemp gives a name that another process can take first"),
        ("server.bind(('0.0.0.0', 80))", "listens to every machine"),
        ("serve(host='0.0.0.0')", "listens to every machine"),
        ("def serve(host='0.0.0.0'): pass", "listens to every machine"),
        ("def serve(*, host: str = '0.0.0.0'): pass", "listens to every machine"),
        ("command = ['vllm', '--host', '0.0.0.0']", "listens to every machine"),
        ("command += ['--host=0.0.0.0']", "listens to every machine"),
        ("HOST = '0.0.0.0'", "listens to every machine"),
        ("requests.get(url)", "requests.get needs a timeout"),
        ("from httpx import post\npost(url)", "httpx.post needs a timeout"),
        ("httpx.AsyncClient()", "httpx.AsyncClient needs a timeout"),
        ("from urllib.request import urlopen\nurlopen(url)", "urllib.request.urlopen needs a timeout"),
        ("import urllib.request\nurllib.request.urlopen(url)", "urllib.request.urlopen needs a timeout"),
    ],
)
def test_a_breach_is_seen(line: str, breach: str) -> None:
    assert set(breaches(line)) == {breach}


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()\nmodel.compile()",
        "import re\nre.compile('a')",
        "torch.compile(model)",
        "spec.loader.exec_module(module)",
        "ast.literal_eval(text)",
        "ast.parse(text, mode='eval')",
        "cursor.execute(text)",
        "evaluate(model)",
        "subprocess.run(['ls'], shell=False)",
        "os.path.join('a', 'b')",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.safe_load(text)",
        "json.load(file)",
        "torch.load(f, weights_only=True)",
        "load(f)",
        "from safetensors.torch import load_file\nload_file(path)",
        "load(path, trust_remote_code=False)",
        "np.load(f)",
        "tempfile.mkdtemp()",
        "serve(host='127.0.0.1')",
        "assert is_loopback('127.0.0.1') and host != '0.0.0.0'",
        "slices = a[::2]",
        "requests.get(url, timeout=5)",
        "urlopen_count = 3",
        "settings.get('timeout')",
        "httpx.AsyncClient(timeout=None)  # said, so somebody thought of it",
        "word = 'pickle'",
        "picklepacker.eval_all()",
    ],
)
def test_an_innocent_look_alike_passes(line: str) -> None:
    assert list(breaches(line)) == []
