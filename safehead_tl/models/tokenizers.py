"""A model's tokenizer: loading it, and giving it to a `HookedTransformer` as it is."""

from __future__ import annotations

import copy
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from safehead_tl.models.identity import Model, is_bridge


def load_tokenizer(source: str | Path | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer as it is, or the one saved at `source`."""
    if isinstance(source, PreTrainedTokenizerBase):
        return source
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise FileNotFoundError(
            f"no tokenizer could be loaded from {source}: save it there with "
            f"tokenizer.save_pretrained, or pass tokenizer=... ({error})"
        ) from error


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer puts a BOS token in front of a text by itself."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def attach_tokenizer(tokenizer: PreTrainedTokenizerBase, model: Model) -> None:
    """Gives a model its own copy of a tokenizer: TransformerLens would force a BOS onto it.

    A bridge would even load another one, by the name that the tokenizer says it came from.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    object.__setattr__(model, "_tokenizer" if is_bridge(model) else "tokenizer", tokenizer)
    model.cfg.tokenizer_prepends_bos = adds_bos(tokenizer)
