"""Loading models as `HookedTransformer`: the embedded ones, directories, known names.

TransformerLens is imported late, inside functions: importing the toolkit stays cheap, and a
version without `HookedTransformer` breaks only what needs it.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from safehead_tl._errors import SafeheadError
from safehead_tl._models import Model, check_model, remember_source

logger = logging.getLogger(__name__)

EMBEDDED = {"demo": "aligned", "demo-base": "base"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MISREAD_WORDS = ("llama", "gemma")
"""What TransformerLens 3.9's config converter takes for an architecture when a path holds it."""


def load_model(
    source: str | Path | Model,
    *,
    weights: str | Path | None = None,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype | str = "float32",
    device: torch.device | str | None = None,
    prepend_bos: bool | None = None,
    verify: bool = True,
) -> Model:
    """Loads a model as a `HookedTransformer` with raw weights (nothing folded or centred).

    Args:
        source: `"demo"` (the embedded aligned organism) or `"demo-base"` (its base model); a name
            or alias that TransformerLens knows; a local Hugging Face directory, whatever it is
            called; or a `HookedTransformer`, which is checked and returned as it is.
        weights: a directory or hub id whose weights (and tokenizer) to put into the architecture
            of `source`: for fine-tunes, like Vicuna's weights on `"meta-llama/Llama-2-7b-hf"`.
        tokenizer: a tokenizer, or where to load one from, instead of the checkpoint's own.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`.
        device: by default the first CUDA device if there is one, else the CPU.
        prepend_bos: whether texts get a BOS token. By default a directory's tokenizer decides;
            for a name TransformerLens's own setting counts.
        verify: compare the converted model's logits with the original's on 16 tokens, where the
            original is at hand (directories and `weights`). Costs one forward pass of each.

    Returns:
        The model, in evaluation mode, without gradients on its weights.

    Raises:
        SafeheadError: for an unknown name, an architecture that cannot be converted or has no
            attention pattern, weights that do not fit, or a conversion that is not exact.
        FileNotFoundError: if a directory, its config, or its tokenizer is missing.
    """
    if isinstance(source, nn.Module):
        check_model(source)
        return source
    _require_hooked_transformer()
    settings = _Settings(
        dtype=_dtype(dtype),
        device=str(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        prepend_bos=prepend_bos,
        verify=verify,
    )
    with contextlib.ExitStack() as stack:
        if source in EMBEDDED:
            data = files("safehead_tl") / "data" / "organism" / EMBEDDED[str(source)]
            directory: Path | None = stack.enter_context(as_file(data))
        else:
            directory = _directory(source)
        if directory is not None:
            config = _config(directory)
            model = _convert(config, str(source), weights or directory, tokenizer, settings)
        else:
            official = _official_name(str(source))
            model = _load_official(official, weights, tokenizer, settings)
    check_model(model)
    revision = getattr(config, "_commit_hash", None) if directory is not None else None
    remember_source(model, str(source), revision, None if weights is None else str(weights))
    return model


@dataclass(frozen=True)
class _Settings:
    dtype: torch.dtype
    device: str
    prepend_bos: bool | None
    verify: bool


def _require_hooked_transformer() -> None:
    version = importlib.metadata.version("transformer-lens")
    if int(version.split(".")[0]) >= 4:
        raise SafeheadError(
            f"transformer-lens {version} no longer has HookedTransformer, which models are "
            "loaded as: pip install 'transformer-lens>=3.9,<4'"
        )


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise SafeheadError(f"dtype {dtype!r} is not known: use {', '.join(DTYPES)}")
        return DTYPES[dtype]
    return dtype


def _directory(source: str | Path) -> Path | None:
    """The local directory that `source` names, if it names one."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    looks_like_path = isinstance(source, Path) or source.startswith((".", "~", os.sep))
    if looks_like_path or path.is_file():
        raise FileNotFoundError(
            f"no directory {path}: a local model is a directory with config.json, weights and "
            "tokenizer, as save_pretrained writes it"
        )
    return None


def _official_name(source: str) -> str:
    from transformer_lens.loading_from_pretrained import make_model_alias_map

    known: dict[str, str] = make_model_alias_map()
    if source.lower() in known:
        return known[source.lower()]
    near = difflib.get_close_matches(source.lower(), known, n=3)
    hint = f" Did you mean {' or '.join(known[name] for name in near)}?" if near else ""
    raise SafeheadError(
        f"model {source!r} is neither 'demo' nor 'demo-base', nor a directory here, nor a name "
        f"that TransformerLens knows.{hint} For a fine-tune of a known model say "
        f"load_model('<the known model>', weights={source!r}); or download it and give its "
        "directory."
    )


def _config(directory: Path) -> PretrainedConfig:
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(
            f"{directory} has no config.json: a local model is a directory with config.json, "
            "weights and tokenizer, as save_pretrained writes it"
        )
    try:
        config = AutoConfig.from_pretrained(directory)
    except (ValueError, KeyError, OSError) as error:
        raise SafeheadError(f"{directory / 'config.json'} cannot be read: {error}") from error
    architectures = getattr(config, "architectures", None) or ["unknown"]
    heads = [getattr(config, name, None) for name in ("num_attention_heads", "n_head", "num_heads")]
    if not any(isinstance(number, int) and number > 0 for number in heads):
        raise SafeheadError(
            f"{directory} is a {architectures[0]}, which has no attention pattern: "
            "there are no heads to ablate in it. Choose a transformer"
        )
    if not architectures[0].endswith(("ForCausalLM", "LMHeadModel")):
        raise SafeheadError(
            f"{directory} is a {architectures[0]}, not a causal language model: "
            "choose a checkpoint that generates text"
        )
    return config


def _convert(
    config: PretrainedConfig,
    name: str,
    weights: str | Path,
    tokenizer: str | Path | PreTrainedTokenizerBase | None,
    settings: _Settings,
) -> Model:
    """Builds the model that a Hugging Face config describes, with the weights found elsewhere."""
    from transformer_lens.config.hooked_transformer_config import HookedTransformerConfig

    fields = _hooked_config(config, name)
    original = _original(weights, settings.dtype)
    tokens = _tokenizer(tokenizer if tokenizer is not None else weights)
    fields |= {
        "model_name": Path(name).name,
        "tokenizer_name": None,
        "init_weights": False,
        "device": settings.device,
        "dtype": settings.dtype,
        "default_prepend_bos": _adds_bos(tokens)
        if settings.prepend_bos is None
        else settings.prepend_bos,
        "d_vocab": original.config.get_text_config().vocab_size,
    }
    return _fill(HookedTransformerConfig.from_dict(fields), original, tokens, name, settings)


def _load_official(
    official: str,
    weights: str | Path | None,
    tokenizer: str | Path | PreTrainedTokenizerBase | None,
    settings: _Settings,
) -> Model:
    """Loads by a name that TransformerLens knows, with its own or with other weights."""
    from transformer_lens import HookedTransformer
    from transformer_lens import loading_from_pretrained as loading

    if official.lower().startswith(("t5", "google-t5", "google-bert", "bert")):
        raise SafeheadError(f"{official} is not a causal language model: choose one that is")
    tokens = None if tokenizer is None else _tokenizer(tokenizer)
    try:
        with _quiet():
            if weights is None:
                model = HookedTransformer.from_pretrained_no_processing(
                    official,
                    dtype=settings.dtype,
                    device=settings.device,
                    default_prepend_bos=settings.prepend_bos,
                    tokenizer=tokens,
                )
                return model.eval().requires_grad_(False)
            original = _original(weights, settings.dtype)
            config = loading.get_pretrained_model_config(
                official,
                hf_cfg=original.config.to_dict(),
                device=settings.device,
                default_prepend_bos=settings.prepend_bos,
                dtype=settings.dtype,
            )
    except OSError as error:
        raise SafeheadError(
            f"{official} could not be fetched: {error} Is this machine online, and is access "
            "granted (huggingface-cli login)? Offline, download the model elsewhere and give "
            "the directory it was saved to"
        ) from error
    tokens = tokens or _tokenizer(weights)
    return _fill(config, original, tokens, official, settings)


def _hooked_config(config: PretrainedConfig, name: str) -> dict[str, Any]:
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
            raise SafeheadError(
                f"{name} is a {architecture}, which TransformerLens cannot convert from a "
                f"directory ({error}). If it is a fine-tune of a model that TransformerLens "
                f"knows by name, say load_model('<that name>', weights={name!r})"
            ) from error
    return fields


def _restore_moved_fields(config: PretrainedConfig) -> None:
    """Puts back a field that Transformers 5 dropped and TransformerLens 3.9 still reads."""
    if config.model_type == "gpt2" and not hasattr(config, "n_ctx"):
        config.n_ctx = config.n_positions


def _original(weights: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """The Hugging Face model whose weights are wanted."""
    try:
        model = AutoModelForCausalLM.from_pretrained(weights, dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise SafeheadError(f"no weights could be loaded from {weights}: {error}") from error
    return model.eval().requires_grad_(False)


def _tokenizer(source: str | Path | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if isinstance(source, PreTrainedTokenizerBase):
        return source
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise FileNotFoundError(
            f"no tokenizer could be loaded from {source}: save it there with "
            f"tokenizer.save_pretrained, or pass tokenizer=... ({error})"
        ) from error


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer puts a BOS token in front of a text by itself."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _fill(
    config: Any,
    original: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    settings: _Settings,
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
    with _quiet():
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
            raise SafeheadError(
                f"TransformerLens cannot put the weights of {name} into its "
                f"{config.original_architecture}: {error}"
            ) from error
        model.move_model_modules_to_device()
    _attach(tokenizer, model)
    model.eval().requires_grad_(False)
    if settings.verify:
        _verify(model, original, name)
    return model


def _attach(tokenizer: PreTrainedTokenizerBase, model: Model) -> None:
    """Gives a model its tokenizer unchanged: TransformerLens would reload it with a BOS forced."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    model.tokenizer = tokenizer
    model.cfg.tokenizer_prepends_bos = len(tokenizer("")["input_ids"]) > 0


def _verify(model: Model, original: PreTrainedModel, name: str) -> None:
    """Compares converted and original logits: converters drop what they do not know of."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.cfg.d_vocab, (1, 16), generator=generator)
    with torch.no_grad():
        theirs = original(tokens).logits.float()
        ours = model(tokens.to(model.cfg.device), attention_mask=torch.ones_like(tokens))
    error = (ours.cpu().float() - theirs).norm() / theirs.norm()
    limit = 1e-3 if model.cfg.dtype == torch.float32 else 5e-2
    if not error < limit:
        raise SafeheadError(
            f"TransformerLens does not convert {name} exactly: its logits are off by "
            f"{error:.2g} of their size (limit {limit:.0e}). Something in its config is not "
            "supported (biases? rope scaling? head_dim?). verify=False loads it all the same"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TransformerLens's deprecation notices and its print out of the user's sight."""
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
    for line in printed.getvalue().splitlines():
        logger.info("%s", line)
