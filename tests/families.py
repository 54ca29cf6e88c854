"""Tiny checkpoints of every architecture, and which kind of model this transformer-lens has."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

import safehead_tl as sh
from safehead_tl.organism import DEMO

try:
    from transformer_lens import HookedTransformer
    from transformer_lens.components import TransformerBlock
except ImportError:  # transformer-lens 4, where everything is a TransformerBridge
    HookedTransformer = TransformerBlock = None
hooked_only = pytest.mark.skipif(
    HookedTransformer is None, reason="transformer-lens 4 has no HookedTransformer"
)

BACKENDS = ["bridge"] if HookedTransformer is None else ["hooked", "bridge"]

TESTS = Path(__file__).parent
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
"""Scores of the paper's own code, and the checkpoints that they are of."""

QUIET = sh.Run(progress=False)

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 48}
WINDOWS = {**GROUPED, "head_dim": 8, "sliding_window": 5}
ARCHITECTURES = {
    "llama": lambda: transformers.LlamaConfig(**{**GROUPED, "num_key_value_heads": 4}),
    "llama-grouped": lambda: transformers.LlamaConfig(**GROUPED),
    "mistral-sliding": lambda: transformers.MistralConfig(**GROUPED, sliding_window=5, head_dim=8),
    "qwen2-biases": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3-qk-norm": lambda: transformers.Qwen3Config(**GROUPED, head_dim=8),
    "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=3, n_head=4),
    "pythia-parallel": lambda: transformers.GPTNeoXConfig(**SIZES, intermediate_size=48),
    "phi3-joint-qkv": lambda: transformers.Phi3Config(**GROUPED),
    "bloom-alibi": lambda: transformers.BloomConfig(hidden_size=32, n_layer=3, n_head=4),
    "mixtral-experts": lambda: transformers.MixtralConfig(
        **GROUPED, num_local_experts=4, num_experts_per_tok=2
    ),
    "gpt-oss-sinks": lambda: transformers.GptOssConfig(
        **WINDOWS, num_local_experts=4, num_experts_per_tok=2
    ),
}
"""What both a `HookedTransformer` and a `TransformerBridge` can be loaded from."""

FAMILIES = {
    **ARCHITECTURES,
    "gemma": lambda: transformers.GemmaConfig(**GROUPED, head_dim=8),
    "gemma2-soft-caps-windows": lambda: transformers.Gemma2Config(
        **WINDOWS, query_pre_attn_scalar=8
    ),
    "gemma3-windows": lambda: transformers.Gemma3TextConfig(**WINDOWS, query_pre_attn_scalar=8),
    "phi": lambda: transformers.PhiConfig(**SIZES, intermediate_size=48),
    "olmo": lambda: transformers.OlmoConfig(**GROUPED),
    "olmo2-norm-over-heads": lambda: transformers.Olmo2Config(**GROUPED),
    "stablelm": lambda: transformers.StableLmConfig(**GROUPED),
}
"""What a `TransformerBridge` can be loaded from."""


def make_checkpoint(name, folder):
    """A tiny random checkpoint of an architecture, with the organism's tokenizer."""
    path = folder / name
    tokenizer = DEMO.tokenizer()
    config = FAMILIES[name]()
    config.update(
        {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("bias", "sinks")) or "norm" in key or "ln_" in key:
                parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
