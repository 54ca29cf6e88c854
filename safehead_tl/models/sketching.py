"""A model without weights, of its config alone: tensors that have sizes and take no memory."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from safehead_tl.errors import SafeheadError
from safehead_tl.models.conversion import NotConvertibleError, hooked_config
from safehead_tl.models.foreign import foreign
from safehead_tl.models.identity import Model, is_bridge
from safehead_tl.models.loading import (
    checkpoint_directory,
    has_hooked_transformer,
    hub_name,
    known_names,
    read_config,
)
from safehead_tl.models.silence import quiet
from safehead_tl.models.tokenizers import adds_bos, attach_tokenizer, load_tokenizer

FEW = 3
"""Layers that stand for all: the first, the last, and one between them."""


def sketch(source: str | Path | PretrainedConfig, dtype: torch.dtype) -> Model:
    """The model as `load_model` would load it, as far as can be told without weights.

    It has a tokenizer if one is found. Its config is on the meta device.

    Args:
        source: what `load_model` takes: a name, or a directory, of which only `config.json` and a
            tokenizer are read; or a config.
        dtype: what its weights would be in.
    """
    if isinstance(source, PretrainedConfig):
        return _built(source, source.name_or_path or type(source).__name__, dtype)
    with checkpoint_directory(source) as local:
        name = str(source)
        model = None if local else _known(name, dtype)
        where = local or hub_name(name)
        model = model or _built(read_config(where), name, dtype)
        with contextlib.suppress(FileNotFoundError, SafeheadError):
            tokenizer = load_tokenizer(where)
            attach_tokenizer(tokenizer, model)
            model.cfg.default_prepend_bos = adds_bos(tokenizer)
        return model


def shortened(model: Model) -> Model:
    """The same with a few layers: what is held of one at a time is the same as of all of them."""
    if is_bridge(model):
        return model
    config = copy.copy(model.cfg)
    config.n_layers = min(FEW, config.n_layers)
    return _hooked(config)


def _known(name: str, dtype: torch.dtype) -> Model | None:
    """One that TransformerLens has the config of by heart, so that it need not be fetched."""
    if not has_hooked_transformer("auto") or name.lower() not in known_names():
        return None
    from transformer_lens.loading_from_pretrained import get_pretrained_model_config

    try:
        config = get_pretrained_model_config(known_names()[name.lower()], device="cpu", dtype=dtype)
    except OSError as error:
        raise SafeheadError(
            f"the config of {name} could not be fetched ({error}): give a directory that has it"
        ) from error
    return _hooked(config)


def _built(config: PretrainedConfig, name: str, dtype: torch.dtype) -> Model:
    if has_hooked_transformer("auto"):
        from transformer_lens.config.hooked_transformer_config import HookedTransformerConfig

        with contextlib.suppress(NotConvertibleError):
            fields = hooked_config(copy.deepcopy(config), name)
            fields |= {"model_name": Path(name).name, "dtype": dtype, "device": "cpu"}
            fields |= {"d_vocab": config.get_text_config().vocab_size, "tokenizer_name": None}
            with foreign(f"TransformerLens cannot read the config of {name}", NotConvertibleError):
                return _hooked(HookedTransformerConfig.from_dict(fields))
    return _bridge(config, name, dtype)


def _bridge(config: PretrainedConfig, name: str, dtype: torch.dtype) -> Model:
    from transformer_lens.model_bridge import TransformerBridge

    boot: Any = TransformerBridge.boot_transformers
    with checkpoint_directory("demo") as any_will_do:
        tokenizer = load_tokenizer(Path(str(any_will_do)))
    with quiet(), torch.device("meta"), foreign(f"TransformerLens has no bridge for {name}"):
        original: Any = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=dtype, attn_implementation="eager"
        )
        told = {"tokenizer": tokenizer, "dtype": dtype, "device": "meta"}
        model = boot(name, hf_model=original.eval(), **told)
    object.__setattr__(model, "_tokenizer", None)
    model.cfg.d_vocab = config.get_text_config().vocab_size
    return model.requires_grad_(False)


def _hooked(config: Any) -> Model:
    from transformer_lens import HookedTransformer

    config.tokenizer_name, config.init_weights, config.device = None, False, "meta"
    with quiet(), torch.device("meta"):
        return HookedTransformer(config, move_to_device=False).eval().requires_grad_(False)
