"""Models and prompts to measure on: random weights, made-up words, any shape."""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens import HookedTransformer

import safehead_tl as sh


@dataclass(frozen=True)
class Shape:
    """A model's sizes and a set of prompts.

    Attributes:
        layers: how many.
        heads: query heads in a layer.
        width: d_model.
        hidden: width of the gated MLP.
        vocabulary: how many tokens there are.
        prompts: how many.
        tokens: tokens that each prompt has to itself.
        ragged: prompts have 2/3 to 1 of these tokens, and are padded.
        prefix: tokens that all prompts begin with.
        key_heads: key/value heads; by default as many as query heads.
        std: of the weights.
    """

    layers: int
    heads: int
    width: int
    hidden: int
    vocabulary: int
    prompts: int
    tokens: int
    ragged: bool = False
    prefix: int = 0
    key_heads: int | None = None
    std: float = 0.05

    def __str__(self) -> str:
        keys = f", {self.key_heads} key heads" if self.key_heads else ""
        lengths = f"{2 * self.tokens // 3} to {self.tokens}" if self.ragged else f"{self.tokens}"
        prefix = f" after {self.prefix} shared" if self.prefix else ""
        return (
            f"{self.layers} layers x {self.heads} heads{keys}, width {self.width}; "
            f"{self.prompts} prompt{'s' * (self.prompts > 1)} of {lengths} tokens{prefix}"
        )

    def model(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> HookedTransformer:
        """A Llama-like model with random weights."""
        with warnings.catch_warnings(action="ignore"), torch.device(device):
            model = HookedTransformer(
                {
                    "n_layers": self.layers,
                    "n_heads": self.heads,
                    "n_key_value_heads": self.key_heads,
                    "d_model": self.width,
                    "d_head": self.width // self.heads,
                    "d_mlp": self.hidden,
                    "d_vocab": self.vocabulary,
                    "n_ctx": 2048,
                    "act_fn": "silu",
                    "gated_mlp": True,
                    "final_rms": True,
                    "normalization_type": "RMS",
                    "positional_embedding_type": "rotary",
                    "rotary_dim": self.width // self.heads,
                    "rotary_adjacent_pairs": False,
                    "default_prepend_bos": False,
                    "dtype": dtype,
                    "device": device,
                    "init_weights": False,
                }
            )
        generator = torch.Generator(device).manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "W_" in name:
                    parameter.normal_(std=self.std, generator=generator)
                elif "b_" in name:
                    parameter.zero_()
        model.tokenizer = words(self.vocabulary)
        return model.eval()

    def texts(self) -> list[str]:
        """Prompts of random words."""
        choose = random.Random(0)
        shared = [f"w{choose.randrange(1, self.vocabulary)}" for _ in range(self.prefix)]
        return [
            " ".join(
                [
                    *shared,
                    f"w{number + 1}",  # where they first differ
                    *(f"w{choose.randrange(1, self.vocabulary)}" for _ in range(length - 1)),
                ]
            )
            for number in range(self.prompts)
            for length in [
                choose.randint(2 * self.tokens // 3, self.tokens) if self.ragged else self.tokens
            ]
        ]


def words(count: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of the words w0, w1, ..."""
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(count)}, "w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0")


SHAPES = {
    "12-layers": Shape(12, 12, 768, 2048, 32_000, prompts=32, tokens=24),
    "prefix": Shape(12, 12, 768, 2048, 32_000, prompts=32, tokens=24, prefix=128),
    "8-prompts": Shape(12, 12, 768, 2048, 32_000, prompts=8, tokens=24),
    "1-prompt": Shape(12, 12, 768, 2048, 32_000, prompts=1, tokens=24),
    "ragged": Shape(6, 12, 768, 2048, 32_000, prompts=100, tokens=24, ragged=True),
    "grouped": Shape(8, 16, 512, 1408, 32_000, prompts=32, tokens=64, key_heads=4),
    "deep": Shape(24, 4, 64, 128, 500, prompts=16, tokens=12),
    "tiny": Shape(2, 4, 32, 64, 100, prompts=4, tokens=8),
}


def organism() -> tuple[HookedTransformer, list[str], str]:
    """The embedded organism, 64 harmful requests, and their template."""
    return sh.load_model("demo"), sh.load_prompts("demo/harmful"), "chat"
