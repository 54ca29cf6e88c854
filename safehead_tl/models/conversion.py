"""Hugging Face checkpoints as `HookedTransformer`: config, weights, and a check.

TransformerLens is imported late, inside functions: importing the toolkit stays cheap, and a
version without `HookedTransformer` breaks only what needs it.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from safehead_tl.errors import SafeheadError
from safehead_tl.models.foreign import foreign, words
from safehead_tl.models.identity import Model, remember_ends
from safehead_tl.models.silence import quiet
from safehead_tl.models.tokenizers import attach_tokenizer

MISREAD_WORDS = ("llama", "gemma")
"""What TransformerLens 3.9's config converter takes for an architecture when a path holds it."""

COUNTS = re.compile("(layer|head|expert)s$|^n_(layer|head)$")
MOST = 100_000
"""The most that a field of a config with such a name can mean; Doge has 16,384 experts."""


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
        try:
            config.save_pretrained(neutral)
            fields: dict[str, Any] = convert_hf_model_config(neutral)
        except Exception as error:
            raise NotConvertibleError(
                f"{name} is a {architecture}, which TransformerLens cannot convert from a "
                f"directory ({words(error).rstrip('.')}). If it is a fine-tune of a model that "
                f"TransformerLens knows by name, say load_model('<that name>', weights={name!r})"
            ) from error
    return fields


def _restore_moved_fields(config: PretrainedConfig) -> None:
    """Puts back a field that Transformers 5 dropped and TransformerLens 3.9 still reads."""
    if config.model_type == "gpt2" and not hasattr(config, "n_ctx"):
        config.n_ctx = config.n_positions


def load_config(where: str | Path, **told: Any) -> PretrainedConfig:
    """A config as Transformers reads it, without running code that comes with it.

    Raises:
        SafeheadError: if it cannot be read, or has more layers, heads or experts than can be
            meant: those would be counted up before anything else is looked at.
    """
    with foreign(f"{Path(where, 'config.json') if Path(where).is_dir() else where} cannot be read"):
        _require_countable(where)
        return AutoConfig.from_pretrained(where, **{"trust_remote_code": False, **told})


def _require_countable(where: str | Path) -> None:
    path = Path(where) / "config.json"
    raw = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for key, value in (*raw.items(), *(raw.get("text_config") or {}).items()):
        if COUNTS.search(key) and isinstance(value, int) and value > MOST:
            raise SafeheadError(f"{path} cannot be meant: it says {key}={value}")


def load_original(
    weights: str | Path | PreTrainedModel,
    dtype: torch.dtype | str,
    kind: Any = AutoModelForCausalLM,
    **told: Any,
) -> PreTrainedModel:
    """The Hugging Face model whose weights are wanted; none of them made up, no code of theirs run.

    `dtype` may be `"auto"`, the checkpoint's own. `told` is passed on to Transformers. Of a model
    in memory it is a copy.
    """
    if isinstance(weights, PreTrainedModel):
        model: Any = copy.deepcopy(weights)
        model.to(dtype)
        if "attn_implementation" in told:
            model.set_attn_implementation(told["attn_implementation"])
        return model.eval().requires_grad_(False)
    settings = Path(weights) / "generation_config.json"
    if settings.is_file():  # Transformers passes over one that it cannot read, and ends differ
        with foreign(f"{settings} cannot be read"):
            GenerationConfig.from_pretrained(weights)
    told = {"trust_remote_code": False, **told}
    with foreign(f"no weights could be loaded from {weights}"):
        _require_countable(weights)
        try:
            model, report = kind.from_pretrained(
                weights, dtype=dtype, output_loading_info=True, **told
            )
        except TypeError as error:
            if "unexpected keyword" not in str(error):
                raise
            raise SafeheadError(
                f"Transformers does not know all that it was told for {weights}: {error}. Is an "
                "argument of load_model misspelt?"
            ) from error
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
        with foreign(
            f"TransformerLens cannot put the weights of {name} into its "
            f"{config.original_architecture}",
            NotConvertibleError,
        ):
            model = HookedTransformer(config, move_to_device=False)
            # A path that exists keeps TransformerLens from looking the name up.
            state = get_pretrained_state_dict(
                tempfile.gettempdir(), config, original, dtype=settings.dtype
            )
            _put_weights(model, model.fill_missing_keys(state))
        model.move_model_modules_to_device()
    attach_tokenizer(tokenizer, model)
    remember_ends(model, original.generation_config)
    model.eval().requires_grad_(False)
    if settings.verify:
        _verify(model, original, name)
    return model


def _put_weights(model: Model, state: dict[str, torch.Tensor]) -> None:
    """Moves weights into a model, each straight into its module, and forgets what is there.

    TransformerLens's own `load_and_process_state_dict` also holds all in float32 for a while, and
    goes through every module for every weight.
    """
    modules = dict(model.named_modules())
    for key in list(state):
        path, _, name = key.rpartition(".")
        weight = state.pop(key)
        if path in modules:
            modules[path].load_state_dict({name: weight}, strict=False)


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
        with foreign(f"Transformers cannot run {name}"):
            theirs = original(tokens).logits.float()
        require_finite(theirs, original, name)
        with foreign(
            f"TransformerLens cannot run {name} in {model.cfg.dtype}", NotConvertibleError
        ):
            ours = model(tokens.to(model.cfg.device), attention_mask=torch.ones_like(tokens))
    off = (ours.cpu().float() - theirs).norm() / theirs.norm()
    limit = 1e-3 if model.cfg.dtype == torch.float32 else 5e-2
    if not off < limit:
        raise NotConvertibleError(
            f"TransformerLens does not convert {name} exactly: its logits are off by "
            f"{off:.2g} of their size (limit {limit:.0e}). Something in its config is not "
            "supported (biases? rope scaling? head_dim?). verify=False loads it all the same"
        )


def require_finite(logits: torch.Tensor, original: PreTrainedModel, name: str) -> None:
    """Checks a model's logits on a few tokens, and says what is wrong where they are not finite.

    Raises:
        SafeheadError: naming a weight that is not finite, or else the dtype.
    """
    if logits.isfinite().all():
        return
    weights = original.state_dict().items()
    bad = next((key for key, weight in weights if not weight.isfinite().all()), None)
    raise SafeheadError(
        f"the logits of {name} are not finite: "
        + (
            f"its weight {bad} holds NaN or infinity. Is the checkpoint damaged?"
            if bad
            else f"it overflows in {original.dtype}. Use dtype='float32'"
        )
    )
