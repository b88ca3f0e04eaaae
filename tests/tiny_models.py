"""Tiny random models for the engine tests, and what transformers says about them."""

from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 48
EOS = 5
"""The model's own end of sequence; engines must not stop there unless told to."""


def tiny_qwen3(seed: int, vocabulary: int = VOCABULARY) -> Qwen3ForCausalLM:
    """A float32 Qwen3 of random weights, wide enough apart that a wrong one shows in every log-prob."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=128,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=True,
        eos_token_id=EOS,
        bos_token_id=None,
        pad_token_id=None,
    )
    return Qwen3ForCausalLM(config).eval()


def save(model: Qwen3ForCausalLM, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def reference_logprobs(
    model: Qwen3ForCausalLM, prompt: list[int], ids: tuple[int, ...], temperature: float, banned: tuple[int, ...]
) -> list[float]:
    """Log-probs of `ids` after `prompt` by one transformers forward, banned ids left out of the softmax."""
    logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    logits[:, list(banned)] = float("-inf")
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
