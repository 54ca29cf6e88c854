"""What a model is, by its config alone: its attention, what can be ablated, what a scan takes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from safehead_tl.ablations import ABLATIONS
from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head
from safehead_tl.models import (
    Anatomy,
    NotConvertibleError,
    adds_bos,
    checkpoint_directory,
    dissect,
    has_hooked_transformer,
    hooked_config,
    hub_name,
    known_names,
    load_tokenizer,
    parse_dtype,
    quiet,
    read_config,
)
from safehead_tl.scan import Needs
from safehead_tl.surgery.checkpoint import marks
from safehead_tl.surgery.weights import ablate_weights

TESTED = (
    "BloomForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GemmaForCausalLM",
    "GPT2LMHeadModel", "GPTNeoXForCausalLM", "GptOssForCausalLM", "LlamaForCausalLM",
    "MistralForCausalLM", "MixtralForCausalLM", "Olmo2ForCausalLM", "OlmoForCausalLM",
    "Phi3ForCausalLM", "PhiForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
    "StableLmForCausalLM",
)  # fmt: skip
"""The architectures of docs/architectures.md, where every ablation is exact by hooks."""

ONLY_AS_BRIDGE = (
    "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GemmaForCausalLM", "Olmo2ForCausalLM",
    "OlmoForCausalLM", "PhiForCausalLM", "StableLmForCausalLM",
)  # fmt: skip
"""Those of them that were tested as a `TransformerBridge` alone."""

UNTESTED = "not tested: a run refuses what it cannot do exactly"
UNTESTED_AS_HOOKED = 'not tested as a HookedTransformer; exact as a bridge (backend="bridge")'


@dataclass(frozen=True)
class _Sizes:
    """What a memory estimate asks of a model, by TransformerLens's names."""

    n_layers: int
    n_heads: int
    d_head: int
    d_model: int
    d_mlp: int
    dtype: torch.dtype


def model_facts(
    source: str | Path,
    *,
    dtype: torch.dtype | str = "float32",
    prompt_count: int = 100,
    prompt_length: int = 64,
) -> dict[str, Any]:
    """What a model is, without loading its weights.

    Args:
        source: `"demo"`, `"demo-base"`, a local Hugging Face directory, or a name on the hub (of
            which config and tokenizer are fetched).
        dtype: the dtype that memory is estimated for.
        prompt_count: how many prompts a scan would have.
        prompt_length: how many tokens the longest of them would have, template included.

    Returns:
        Sizes, kinds of attention, which ablations are exact (by hooks, and in weights) or why they
        are refused, and memory in bytes: of the weights; the least that a scan takes beside them;
        and what lets it hold all layers' streams, so that nothing runs twice.

    Raises:
        SafeheadError: if there is no such model, or nothing in it to ablate.
    """
    precision = parse_dtype(dtype)
    with checkpoint_directory(source) as local:
        where = local if local is not None else hub_name(str(source))
        config = read_config(where)
        with quiet(), torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(config))
        loaded_as, why_not = _kind(config, str(source), local)
        facts = {
            "name": str(source),
            "architecture": type(model).__name__,
            "loaded_as": loaded_as,
            **({"not_as_hooked_transformer": why_not} if why_not else {}),
            **_sizes(model),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "context": getattr(config.get_text_config(), "max_position_embeddings", None),
            **_tokenizer(where),
        }
    try:
        anatomy = dissect(model)
    except SafeheadError as error:
        refusals: dict[str, SafeheadError | None] = dict.fromkeys(ABLATIONS, error)
    else:
        facts["key_value_heads"] = anatomy.n_key_value_heads
        facts["attention"] = _attention(model, anatomy)
        refusals = _refusals(model, anatomy)
    by_hooks = _by_hooks(type(model).__name__, loaded_as)
    facts["ablations"] = {
        name: {"hooks": by_hooks, "weights": _in_weights(type(model).__name__, refusal)}
        for name, refusal in refusals.items()
    }
    facts["memory"] = _memory(model, precision, prompt_count, prompt_length)
    done = marks(config)
    if done:
        facts["altered_by_safehead_tl"] = done
    return facts


def _kind(config: PretrainedConfig, name: str, local: Path | None) -> tuple[str, str | None]:
    """As what `load_model` would load it, as far as can be told without the weights."""
    if not has_hooked_transformer("auto"):
        return "TransformerBridge", None
    if local is None and name.lower() in known_names():
        return "HookedTransformer", None
    try:
        hooked_config(copy.deepcopy(config), name)
    except NotConvertibleError as error:
        return "TransformerBridge", str(error)
    return "HookedTransformer, if its logits prove equal; else TransformerBridge", None


def _sizes(model: PreTrainedModel) -> dict[str, Any]:
    config: Any = model.config.get_text_config()
    heads = config.num_attention_heads
    return {
        "layers": config.num_hidden_layers,
        "heads": heads,
        "key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
        "d_model": config.hidden_size,
        "d_head": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "vocabulary": config.vocab_size,
    }


def _attention(model: PreTrainedModel, anatomy: Anatomy) -> dict[str, Any]:
    config: Any = model.config.get_text_config()
    size, first, windows = anatomy.group_size, anatomy.layers[0], anatomy.windows
    groups = f"grouped-query: {size} query heads share each of {anatomy.n_key_value_heads} KV heads"
    slides = [window for window in windows if window]
    biased = [
        channel
        for channel, slices in first.slices.items()
        if getattr(model.get_submodule(slices.module), "bias", None) is not None
    ]
    experts = [getattr(config, name, None) for name in ("num_local_experts", "num_experts")]
    found = {
        "heads": "multi-head" if size == 1 else groups,
        "positions": _positions(config, anatomy),
        "window": f"{max(slides)} tokens in {len(slides)} of {len(windows)} layers"
        if slides
        else None,
        "qk_norm": None if first.qk_norm == "none" else first.qk_norm,
        "soft_cap": anatomy.softcap,
        "sinks": "learned, one a head" if first.sinks else None,
        "biases": ", ".join(biased) or None,
        "experts": next(filter(None, experts), None),
    }
    return {name: value for name, value in found.items() if value is not None}


def _positions(config: Any, anatomy: Anatomy) -> str:
    if anatomy.alibi:
        return "ALiBi"
    return "rotary" if getattr(config, "rope_parameters", None) else "learned"


def _tokenizer(where: str | Path) -> dict[str, Any]:
    try:
        tokenizer = load_tokenizer(where)
    except FileNotFoundError:
        return {"tokenizer": "none found"}
    return {"chat_template": bool(tokenizer.chat_template), "adds_bos": adds_bos(tokenizer)}


def _refusals(model: PreTrainedModel, anatomy: Anatomy) -> dict[str, SafeheadError | None]:
    """For each ablation, why it cannot be written into weights."""
    group = [Head(0, head) for head in range(anatomy.group_size)]
    found: dict[str, SafeheadError | None] = {}
    for name, make in ABLATIONS.items():
        try:
            ablate_weights(model, anatomy, group, make())
        except SafeheadError as error:
            found[name] = error
        else:
            found[name] = None
    return found


def _by_hooks(architecture: str, loaded_as: str) -> str:
    if loaded_as == "HookedTransformer" and architecture in ONLY_AS_BRIDGE:
        return UNTESTED_AS_HOOKED
    return "exact" if architecture in TESTED else UNTESTED


def _in_weights(architecture: str, refusal: SafeheadError | None) -> str:
    if refusal is not None:
        return f"refused: {refusal}"
    return "exact" if architecture in TESTED else UNTESTED


def _memory(
    model: PreTrainedModel, dtype: torch.dtype, prompt_count: int, prompt_length: int
) -> dict[str, Any]:
    config: Any = model.config.get_text_config()
    experts = getattr(config, "num_experts_per_tok", None) or 1
    names = ("moe_intermediate_size", "intermediate_size", "n_inner")
    inner = next(filter(None, (getattr(config, name, None) for name in names)), None)
    found = _sizes(model)
    sizes = _Sizes(
        n_layers=found["layers"],
        n_heads=found["heads"],
        d_head=found["d_head"],
        d_model=found["d_model"],
        d_mlp=experts * (inner or 4 * config.hidden_size),
        dtype=dtype,
    )
    needs = Needs.of(sizes, prompt_count, prompt_length)
    number = torch.empty((), dtype=dtype).element_size()
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "weights": number * sum(parameter.numel() for parameter in model.parameters()),
        "prompt_count": prompt_count,
        "prompt_length": prompt_length,
        "scan_at_least": needs.least(),
        "scan_at_ease": max(needs.least(), needs.kept),
    }
