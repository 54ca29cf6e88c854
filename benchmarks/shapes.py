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
        name: what the table calls it.
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
    """

    name: str
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

    def model(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> HookedTransformer:
        """A Llama-like model with random weights."""
        torch.manual_seed(0)
        with warnings.catch_warnings(action="ignore"):
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
                    "initializer_range": 0.05,
                    "default_prepend_bos": False,
                    "dtype": dtype,
                    "device": device,
                    "seed": 0,
                }
            )
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
            for length in [choose.randint(2 * self.tokens // 3, self.tokens) if self.ragged else self.tokens]
        ]


def words(count: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of the words w0, w1, ..."""
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(count)}, "w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0")


ORGANISM = "embedded organism"
SHAPES = [
    Shape("12 x 12 x 768, 32 prompts of 24", 12, 12, 768, 2048, 32_000, 32, 24),
    Shape("... with a shared prefix of 128", 12, 12, 768, 2048, 32_000, 32, 24, prefix=128),
    Shape("... with 8 prompts", 12, 12, 768, 2048, 32_000, 8, 24),
    Shape("... with 1 prompt", 12, 12, 768, 2048, 32_000, 1, 24),
    Shape("... with 200 prompts of 16 to 24, padded", 6, 12, 768, 2048, 32_000, 200, 24, True),
    Shape("8 x 16 (4 key heads) x 512, 32 prompts of 64", 8, 16, 512, 1408, 32_000, 32, 64, key_heads=4),
    Shape("24 x 4 x 64, 16 prompts of 12", 24, 4, 64, 128, 500, 16, 12),
    Shape("2 x 4 x 32, 4 prompts of 8", 2, 4, 32, 64, 100, 4, 8),
]


def organism() -> tuple[HookedTransformer, list[str], str]:
    """The embedded organism, 64 harmful requests, and their template."""
    return sh.load_model("demo"), sh.load_prompts("demo/harmful"), "chat"
