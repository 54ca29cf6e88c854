"""Hugging Face checkpoints as `TransformerBridge`: loaded by Transformers, wrapped, and checked."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safehead_tl.errors import SafeheadError
from safehead_tl.models.conversion import Settings, load_original, require_finite
from safehead_tl.models.foreign import foreign
from safehead_tl.models.identity import Model, remember_ends
from safehead_tl.models.silence import quiet
from safehead_tl.models.tokenizers import adds_bos, attach_tokenizer, load_tokenizer


def load_bridge(
    source: str | Path | PreTrainedModel,
    tokenizer: str | Path | PreTrainedTokenizerBase | None,
    settings: Settings,
    told: dict[str, Any],
) -> Model:
    """Loads a checkpoint with Transformers, which is `told` such as `device_map`, and wraps it.

    Raises:
        SafeheadError: if the weights cannot be loaded, TransformerLens has no bridge for the
            architecture, or the bridge changes the model's logits.
    """
    from transformer_lens.model_bridge import TransformerBridge

    if settings.dtype == torch.float64:
        raise SafeheadError(
            "a TransformerBridge computes attention in float32 at most: use dtype='float32', or "
            "a HookedTransformer"
        )
    original = load_original(source, settings.dtype, attn_implementation="eager", **told)
    if not told:
        original.to(torch.device(settings.device))  # type: ignore[arg-type]
    trust = bool(told.get("trust_remote_code"))
    if isinstance(source, PreTrainedModel):
        source = source.name_or_path or type(source).__name__
    given = source if tokenizer is None else tokenizer
    tokens = copy.deepcopy(load_tokenizer(given, trust_remote_code=trust))
    # A directory may be called like a model that TransformerLens knows: it gets the whole path.
    name = str(Path(source).resolve()) if Path(source).is_dir() else str(source)
    tokens.init_kwargs.setdefault("name_or_path", name)
    before = None
    if settings.verify:
        with foreign(f"Transformers cannot run {source}"):
            before = _logits(original)
        require_finite(before, original, str(source))
    architecture = type(original).__name__
    vocabulary = original.config.get_text_config().vocab_size
    _know_cache()
    with foreign(f"{source} is a {architecture}, which TransformerLens has no bridge for"), quiet():
        boot: Any = TransformerBridge.boot_transformers
        model: Any = boot(
            name,
            hf_model=original,
            tokenizer=copy.deepcopy(tokens),
            dtype=settings.dtype,
            device=None if told else settings.device,
        )
    model.eval().requires_grad_(False)
    model.cfg.d_vocab = vocabulary
    attach_tokenizer(tokens, model)
    remember_ends(model, original.generation_config)
    model.cfg.default_prepend_bos = (
        adds_bos(tokens) if settings.prepend_bos is None else settings.prepend_bos
    )
    if before is not None:
        _verify(before, model, architecture, settings.dtype)
    return model


def _know_cache() -> None:
    """Lets a bridge's attention keep keys and values under Transformers 5.24.

    It calls `cache` what it called `past_key_values`, the only name that TransformerLens 4.3 knows:
    without it each new token attends to itself alone, and `model.generate` writes gibberish.
    Where a name that TransformerLens knows comes too, nothing changes.
    """
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    kind: Any = AttentionBridge
    update = kind._update_kv_cache
    if update.__module__ != __name__:

        def known(bridge: Any, k: torch.Tensor, v: torch.Tensor, **told: Any) -> Any:
            return update(bridge, k, v, **{"past_key_values": told.get("cache"), **told})

        kind._update_kv_cache = known


def _logits(original: PreTrainedModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    vocabulary = original.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (1, 16), generator=generator).to(original.device)
    with torch.no_grad():
        return original(tokens).logits.float().cpu()


def _verify(before: torch.Tensor, model: Model, architecture: str, dtype: torch.dtype) -> None:
    """Compares logits on 16 tokens with those of the model before it was wrapped."""
    after = _logits(cast("PreTrainedModel", model.original_model))
    error = (after - before).norm() / before.norm()
    limit = 1e-4 if dtype == torch.float32 else 5e-2
    if not error < limit:
        raise SafeheadError(
            f"TransformerLens does not wrap this {architecture} exactly: its logits are off by "
            f"{error:.2g} of their size (limit {limit:.0e}). verify=False loads it all the same"
        )
