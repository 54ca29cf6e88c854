"""Hugging Face checkpoints as `HookedTransformer`: config, weights, and a check.

TransformerLens is imported late, inside functions: importing the toolkit stays cheap, and a
version without `HookedTransformer` breaks only what needs it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from safehead_tl.errors import SafeheadError
from safehead_tl.models.identity import Model, remember_ends
from safehead_tl.models.silence import quiet
from safehead_tl.models.tokenizers import attach_tokenizer

MISREAD_WORDS = ("llama", "gemma")
"""What TransformerLens 3.9's config converter takes for an architecture when a path holds it."""


class NotConvertibleError(SafeheadError):
    """This model cannot be had, or not exactly, as a `HookedTransformer`."""


@dataclass(frozen=True)
class Settings:
    """What `load_model` was told: see its arguments."""

    dtype: torch.dtype
    device: str
    prepend_bos: bool | None
    verify: bool


def hooked_config(config: PretrainedConfig, name: str) -> dict[str, Any]:
    """TransformerLens's reading of a config, kept from guessing by the directory's name.

    Its converter takes a path that contains "llama" or "gemma" for that architecture and then
    fails; so it gets a copy of the config under a path that contains neither.
    """
    from transformer_lens.loading_from_pretrained import convert_hf_model_config

    architecture = (config.architectures or ["unknown"])[0]
    with tempfile.TemporaryDirectory(prefix="config-") as neutral:
        if any(word in neutral.lower() for word in MISREAD_WORDS):
            raise SafeheadError(
                f"the temporary directory {neutral} has {' or '.join(MISREAD_WORDS)} in its "
                "path, which TransformerLens misreads: set TMPDIR to another one"
            )
        _restore_moved_fields(config)
        config.save_pretrained(neutral)
        try:
            fields: dict[str, Any] = convert_hf_model_config(neutral)
        except (NotImplementedError, AttributeError, KeyError, TypeError) as error:
            raise NotConvertibleError(
                f"{name} is a {architecture}, which TransformerLens cannot convert from a "
                f"directory ({error}). If it is a fine-tune of a model that TransformerLens "
                f"knows by name, say load_model('<that name>', weights={name!r})"
            ) from error
    return fields


def _restore_moved_fields(config: PretrainedConfig) -> None:
    """Puts back a field that Transformers 5 dropped and TransformerLens 3.9 still reads."""
    if config.model_type == "gpt2" and not hasattr(config, "n_ctx"):
        config.n_ctx = config.n_positions


def load_original(weights: str | Path, dtype: torch.dtype | str, **told: Any) -> PreTrainedModel:
    """The Hugging Face model whose weights are wanted; none of them made up.

    `dtype` may be `"auto"`, the checkpoint's own. `told` is passed on to Transformers.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            weights, dtype=dtype, output_loading_info=True, **told
        )
    except TypeError as error:
        raise SafeheadError(
            f"Transformers does not know all that it was told for {weights}: {error}. Is an "
            "argument of load_model misspelt?"
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise SafeheadError(f"no weights could be loaded from {weights}: {error}") from error
    model, report = loaded
    absent = sorted(report["missing_keys"])
    if absent:
        raise SafeheadError(
            f"{weights} lacks {len(absent)} of the model's weights, {absent[0]} among them; they "
            "would be random. Is it a whole checkpoint of this architecture?"
        )
    return model.eval().requires_grad_(False)


def fill_model(
    config: Any,
    original: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    settings: Settings,
) -> Model:
    """Builds the `HookedTransformer` of a config and moves the original's weights into it."""
    from transformer_lens import HookedTransformer
    from transformer_lens.loading_from_pretrained import get_pretrained_state_dict

    theirs = original.config.get_text_config()
    for ours, attribute in (
        ("n_layers", "num_hidden_layers"),
        ("n_heads", "num_attention_heads"),
        ("d_model", "hidden_size"),
    ):
        wanted, found = getattr(config, ours), getattr(theirs, attribute)
        if wanted != found:
            raise SafeheadError(
                f"these weights do not fit {name}: it has {ours}={wanted}, they have {found}. "
                "Name the model that they are a fine-tune of"
            )
    with quiet():
        config.tokenizer_name = None
        model = HookedTransformer(config, move_to_device=False)
        try:
            # A path that exists keeps TransformerLens from looking the name up.
            state = get_pretrained_state_dict(
                tempfile.gettempdir(), config, original, dtype=settings.dtype
            )
            model.load_and_process_state_dict(
                state,
                fold_ln=False,
                center_writing_weights=False,
                center_unembed=False,
                fold_value_biases=False,
            )
        except (AttributeError, RuntimeError, ValueError) as error:
            raise NotConvertibleError(
                f"TransformerLens cannot put the weights of {name} into its "
                f"{config.original_architecture}: {error}"
            ) from error
        model.move_model_modules_to_device()
    attach_tokenizer(tokenizer, model)
    remember_ends(model, original.generation_config)
    model.eval().requires_grad_(False)
    if settings.verify:
        _verify(model, original, name)
    return model


def _verify(model: Model, original: PreTrainedModel, name: str) -> None:
    """Compares the converted model with the original: converters drop what they do not know.

    Logits are compared on 16 tokens. A sliding window may be longer than that, so its size is
    compared by itself.
    """
    theirs_config = original.config.get_text_config()
    window = getattr(theirs_config, "sliding_window", None)
    kinds = getattr(theirs_config, "layer_types", None)
    slides = (
        "sliding_attention" in kinds
        if kinds is not None
        else getattr(theirs_config, "use_sliding_window", True)
    )
    ours_window = model.cfg.window_size if model.cfg.use_local_attn else None
    if window and slides and window < model.cfg.n_ctx and ours_window != window:
        raise NotConvertibleError(
            f"TransformerLens does not convert {name} exactly: it drops the sliding window of "
            f"{window} tokens. verify=False loads it all the same; prompts must be shorter then"
        )
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.cfg.d_vocab, (1, 16), generator=generator)
    with torch.no_grad():
        theirs = original(tokens).logits.float()
        try:
            ours = model(tokens.to(model.cfg.device), attention_mask=torch.ones_like(tokens))
        except RuntimeError as error:
            raise NotConvertibleError(
                f"TransformerLens cannot run {name} in {model.cfg.dtype}: {error}"
            ) from error
    off = (ours.cpu().float() - theirs).norm() / theirs.norm()
    limit = 1e-3 if model.cfg.dtype == torch.float32 else 5e-2
    if not off < limit:
        raise NotConvertibleError(
            f"TransformerLens does not convert {name} exactly: its logits are off by "
            f"{off:.2g} of their size (limit {limit:.0e}). Something in its config is not "
            "supported (biases? rope scaling? head_dim?). verify=False loads it all the same"
        )
