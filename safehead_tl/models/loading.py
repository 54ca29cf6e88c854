"""Loading models: the embedded ones, directories, names; as `HookedTransformer` or as bridge."""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib.metadata
import logging
import os
import re
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from safehead_tl.errors import SafeheadError
from safehead_tl.models.bridging import load_bridge
from safehead_tl.models.conversion import (
    NotConvertibleError,
    Settings,
    fill_model,
    hooked_config,
    load_config,
    load_original,
)
from safehead_tl.models.foreign import foreign
from safehead_tl.models.identity import (
    Model,
    SpecialTokens,
    remember_ends,
    remember_reading,
    remember_source,
)
from safehead_tl.models.silence import quiet, without_bars
from safehead_tl.models.tokenizers import adds_bos, load_tokenizer
from safehead_tl.models.undoing import check_model

logger = logging.getLogger("safehead_tl")

Backend: TypeAlias = Literal["auto", "hooked", "bridge"]
EMBEDDED = {"demo": "organism/aligned", "demo-base": "organism/base", "demo-natural": "natural"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Loading:
    """How a model is loaded, so that another process can.

    Attributes:
        source: what `load_model` was given: a name or a directory.
        told: what else it was told, but for the device.
    """

    source: str
    told: Mapping[str, Any]

    def load(self) -> Model:
        """The model, on this process's device."""
        return load_model(self.source, **self.told)

    @staticmethod
    def of(model: Model) -> Loading:
        """How a model was loaded.

        Raises:
            SafeheadError: if it was not, but made in memory.
        """
        found = _loadings.get(model)
        if found is None:
            raise SafeheadError(
                "other processes cannot load this model, which was made in memory: save it as a "
                "Hugging Face directory, and load it from there with safehead_tl.load_model"
            )
        return found


_loadings: weakref.WeakKeyDictionary[nn.Module, Loading] = weakref.WeakKeyDictionary()


def load_model(
    source: str | Path | Model | PreTrainedModel,
    *,
    weights: str | Path | None = None,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype | str = "float32",
    device: torch.device | str | None = None,
    prepend_bos: bool | None = None,
    special_tokens: SpecialTokens | None = None,
    verify: bool = True,
    backend: Backend = "auto",
    **transformers: Any,
) -> Model:
    """Loads a model as TransformerLens has it, with raw weights (nothing folded or centred).

    Args:
        source: `"demo"` (the embedded aligned organism), `"demo-base"` (its base model) or
            `"demo-natural"` (the same base, tuned to refuse with all attention weights); a name or
            alias that TransformerLens knows; a local Hugging Face directory, whatever it is called;
            another hub id (as a bridge); a Hugging Face model in memory, which is copied and needs
            its `tokenizer`; or a model of TransformerLens, checked and returned as it is.
        weights: a directory or hub id whose weights (and tokenizer) to put into the architecture
            of `source`: for fine-tunes, like Vicuna's weights on `"meta-llama/Llama-2-7b-hf"`.
        tokenizer: a tokenizer, or where to load one from, instead of the checkpoint's own.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`.
        device: by default the first CUDA device if there is one (of torchrun's processes each has
            its own), else the CPU.
        prepend_bos: whether texts get a BOS token. By default a directory's tokenizer decides;
            for a name TransformerLens's own setting counts.
        special_tokens: how a special token that is written in a prompt, such as `</s>`, is read in
            all that this model is asked: `"special"`, as that token (what Transformers does, and
            the default), or `"literal"`, as the characters that it is written with. Those of a
            template are special tokens either way. A model that is used as it is keeps what it
            was told before, unless told anew.
        verify: compare the converted model's logits with the original's on 16 tokens, where the
            original is at hand (directories and `weights`). Costs one forward pass of each.
        backend: `"hooked"` for a `HookedTransformer` (transformer-lens 3.9 only), `"bridge"` for a
            `TransformerBridge`. `"auto"` takes the first where it can be had exactly.
        **transformers: passed on to Transformers' `from_pretrained`, such as `device_map` or
            `quantization_config`. Makes it a bridge. Code that comes with a checkpoint is run only
            with `trust_remote_code=True`, which provenance then tells.

    Returns:
        The model, in evaluation mode, without gradients on its weights.

    Raises:
        SafeheadError: for an unknown name, an architecture that cannot be converted or has no
            attention pattern, weights that do not fit, or a conversion that is not exact.
        FileNotFoundError: if a directory, its config, or its tokenizer is missing.

    Example:
        >>> model = sh.load_model("demo")
        >>> model.cfg.n_layers, model.cfg.n_heads
        (4, 8)
    """
    how: dict[str, Any] = {
        "weights": weights,
        "tokenizer": tokenizer,
        "dtype": dtype,
        "prepend_bos": prepend_bos,
        "special_tokens": special_tokens,
        "verify": verify,
        "backend": backend,
        **transformers,
    }
    if special_tokens not in (None, *get_args(SpecialTokens)):
        raise SafeheadError(
            f"special_tokens={special_tokens!r} is not known: use 'special' or 'literal'"
        )
    if isinstance(source, nn.Module) and not isinstance(source, PreTrainedModel):
        check_model(source)
        told = {**how, "device": device, "special_tokens": None}
        told |= {"backend": None if backend == "auto" else backend}
        told |= {"verify": None if verify else verify}
        ignored = [name for name, value in told.items() if value not in (None, "float32")]
        if ignored:
            raise SafeheadError(f"a model is used as it is: leave out {', '.join(ignored)}")
        remember_reading(source, special_tokens)
        return source
    if not isinstance(source, str | Path | PreTrainedModel):
        raise SafeheadError(f"{source!r} is not a model: give a name or a directory")
    if backend not in get_args(Backend):
        raise SafeheadError(f"backend={backend!r} is not known: use 'auto', 'hooked' or 'bridge'")
    if backend == "hooked" and transformers:
        raise SafeheadError(f"backend='hooked' does not go with {', '.join(transformers)}")
    memory = source if isinstance(source, PreTrainedModel) else None
    if memory is not None and (tokenizer is None or weights is not None or transformers):
        raise SafeheadError(
            "a Hugging Face model in memory has its weights and lacks a tokenizer: give "
            "tokenizer=..., and neither weights nor what Transformers would be told"
        )
    settings = Settings(
        dtype=parse_dtype(dtype), device=_device(device), prepend_bos=prepend_bos, verify=verify
    )
    hooked = not transformers and has_hooked_transformer(backend)
    trust = bool(transformers.get("trust_remote_code"))
    config = None
    name = str(source) if memory is None else memory.name_or_path or type(memory).__name__
    with checkpoint_directory(source) as directory:
        if memory is not None:
            config = copy.deepcopy(memory.config)
            config.architectures = [type(memory).__name__]
            _require_heads(config, name)
        elif directory is not None:
            config = read_config(directory, trust_remote_code=trust)
        refusal = None
        if hooked:
            try:
                where = weights or memory or directory
                if config is not None and where is not None:
                    model = _convert(config, name, where, tokenizer, settings)
                else:
                    official = _official_name(name)
                    model = _load_official(official, weights, tokenizer, settings)
            except NotConvertibleError as error:
                refusal = error
        if refusal is not None or not hooked:
            where = weights or memory or directory or hub_name(name)
            model = _load_bridge(where, tokenizer, settings, transformers, refusal, backend)
        check_model(model)
    known = memory is None and (directory is None or weights)
    revision = hub_revision(weights or name) if known else None
    remember_source(model, name, revision, None if weights is None else str(weights), trust)
    remember_reading(model, special_tokens)
    if memory is None:
        there = Path(name).is_dir()
        _loadings[model] = Loading(str(Path(name).resolve()) if there else name, how)
    return model


def _load_bridge(
    where: str | Path | PreTrainedModel,
    tokenizer: str | Path | PreTrainedTokenizerBase | None,
    settings: Settings,
    transformers: dict[str, Any],
    refusal: NotConvertibleError | None,
    backend: Backend,
) -> Model:
    """Loads a bridge, perhaps because a `HookedTransformer` cannot be had: `refusal` says why."""
    if refusal is not None and backend == "hooked":
        raise refusal
    try:
        model = load_bridge(where, tokenizer, settings, transformers)
    except SafeheadError as error:
        if refusal is None and (isinstance(where, PreTrainedModel) or Path(where).is_dir()):
            raise
        if refusal is None:
            raise SafeheadError(not_found(str(where), error)) from error
        raise SafeheadError(f"{refusal} And as a TransformerBridge: {error}") from error
    if refusal is not None:
        logger.warning("%s It is loaded as a TransformerBridge instead.", refusal)
    return model


def not_found(name: str, error: Exception) -> str:
    """What to say of a name that is no model here and could not be fetched."""
    return (
        f"model {name!r} is neither {' nor '.join(map(repr, EMBEDDED))}, nor a directory here, and "
        f"it could not be fetched by that name ({error}). Is this machine online, and is access "
        "granted (hf auth login)? Offline, download the model elsewhere and give the "
        "directory it was saved to"
    )


def has_hooked_transformer(backend: Backend) -> bool:
    """Whether to load a `HookedTransformer`: where there is one, and a bridge is not asked for."""
    version = importlib.metadata.version("transformer-lens")
    there = int(version.split(".")[0]) < 4
    if backend == "hooked" and not there:
        raise SafeheadError(
            f"transformer-lens {version} no longer has HookedTransformer: leave backend out for a "
            "TransformerBridge, or pip install 'transformer-lens>=3.9,<4'"
        )
    return there and backend != "bridge"


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A dtype, from itself or its name."""
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise SafeheadError(f"dtype {dtype!r} is not known: use {', '.join(DTYPES)}")
        return DTYPES[dtype]
    return dtype


def _device(device: torch.device | str | None) -> str:
    if device is None:
        if not torch.cuda.is_available():
            return "cpu"
        rank = os.environ.get(
            "LOCAL_RANK", ""
        )  # which of a machine's processes torchrun says it is
        return f"cuda:{int(rank) % torch.cuda.device_count()}" if rank.isdecimal() else "cuda"
    try:
        torch.zeros(1, device=device).item()  # the meta device holds no numbers
    except (RuntimeError, AssertionError) as error:
        raise SafeheadError(
            f"device {str(device)!r} cannot be used here ({error}): use 'cpu', or another that is "
            "here"
        ) from error
    return str(device)


@contextlib.contextmanager
def checkpoint_directory(source: str | Path | PreTrainedModel) -> Iterator[Path | None]:
    """The local directory that `source` names, if it names one: an embedded model, or a path."""
    if isinstance(source, PreTrainedModel):
        yield None
    elif source in EMBEDDED:
        data = files("safehead_tl") / "data" / EMBEDDED[str(source)]
        with as_file(data) as directory, without_bars():
            yield directory
    else:
        yield _directory(source)


def hub_name(source: str) -> str:
    """The hub id behind a name that TransformerLens knows; any other id, `owner/name`, is itself.

    Raises:
        SafeheadError: if it is a single word that TransformerLens does not know.
    """
    if "/" in source:
        return known_names().get(source.lower(), source)
    return _official_name(source)


def hub_revision(name: str | Path) -> str | None:
    """The commit on the hub that a name was loaded from, by where its config lies in the cache."""
    if Path(name).expanduser().is_dir():
        return None
    config = cached_file(
        known_names().get(str(name).lower(), str(name)),
        "config.json",
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    found = re.search(r"/snapshots/([0-9a-f]{40})/", Path(config).as_posix()) if config else None
    return found[1] if found else None


def known_names() -> dict[str, str]:
    """The hub ids that TransformerLens knows, by themselves and by its own names for them."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    return {
        name.lower(): official
        for official in OFFICIAL_MODEL_NAMES
        for name in (official, *MODEL_ALIASES.get(official, ()))
    }


def _directory(source: str | Path) -> Path | None:
    if not isinstance(source, str | Path):
        raise SafeheadError(
            f"{type(source).__name__} is no name: give the name or the directory of a checkpoint, "
            "whose weights are read there"
        )
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
    known = known_names()
    if source.lower() in known:
        return known[source.lower()]
    names = {**known, **{name: name for name in EMBEDDED}}
    near = dict.fromkeys(names[n] for n in difflib.get_close_matches(source.lower(), names, n=3))
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise (NotConvertibleError if "/" in source else SafeheadError)(
        f"model {source!r} is neither {' nor '.join(map(repr, EMBEDDED))}, nor a directory here, "
        f"nor a name that TransformerLens knows.{hint} For a fine-tune of a known model say "
        f"load_model('<the known model>', weights={source!r}); or download it and give its "
        "directory."
    )


def read_config(where: str | Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a directory, or of a name on the hub, if it is a model with heads to ablate.

    Raises:
        FileNotFoundError: if a directory has no config.
        SafeheadError: if it cannot be read or fetched, or is no causal transformer.
    """
    directory = where if isinstance(where, Path) else None
    if directory is not None and not (directory / "config.json").is_file():
        models = sorted(str(path.parent) for path in directory.glob("*/config.json"))
        inside = f" (but {' and '.join(models)} have one)" if models else ""
        raise FileNotFoundError(
            f"{directory} has no config.json{inside}: a local model is a directory with "
            "config.json, weights and tokenizer, as save_pretrained writes it"
        )
    try:
        config = load_config(where, trust_remote_code=trust_remote_code)
    except SafeheadError as error:
        if directory is None:
            raise SafeheadError(not_found(str(where), error)) from error
        raise
    with foreign(f"the config of {where} cannot be read"):
        _require_heads(config, where)
    return config


def _require_heads(config: PretrainedConfig, where: str | Path) -> None:
    """Checks that a config is that of a causal language model with heads."""
    architectures = getattr(config, "architectures", None) or ["unknown"]
    heads = [getattr(config, name, None) for name in ("num_attention_heads", "n_head", "num_heads")]
    layers = getattr(config.get_text_config(), "num_hidden_layers", 1)
    if not layers or not any(isinstance(number, int) and number > 0 for number in heads):
        raise SafeheadError(
            f"{where} is a {architectures[0]}, which has no attention pattern: "
            "there are no heads to ablate in it. Choose a transformer"
        )
    if not architectures[0].endswith(("ForCausalLM", "LMHeadModel")):
        raise SafeheadError(
            f"{where} is a {architectures[0]}, not a causal language model: "
            "choose a checkpoint that generates text"
        )


def _convert(
    config: PretrainedConfig,
    name: str,
    weights: str | Path | PreTrainedModel,
    tokenizer: str | Path | PreTrainedTokenizerBase | None,
    settings: Settings,
) -> Model:
    """Builds the model that a Hugging Face config describes, with the weights found elsewhere."""
    from transformer_lens.config.hooked_transformer_config import HookedTransformerConfig

    fields = hooked_config(config, name)
    original = load_original(weights, settings.dtype)
    given = weights if tokenizer is None else tokenizer
    assert not isinstance(given, PreTrainedModel)  # comes with a tokenizer
    tokens = load_tokenizer(given)
    fields |= {
        "model_name": Path(name).name,
        "tokenizer_name": None,
        "init_weights": False,
        "device": settings.device,
        "dtype": settings.dtype,
        "default_prepend_bos": adds_bos(tokens)
        if settings.prepend_bos is None
        else settings.prepend_bos,
        "d_vocab": original.config.get_text_config().vocab_size,
    }
    with foreign(f"TransformerLens cannot read the config of {name}", NotConvertibleError):
        hooked = HookedTransformerConfig.from_dict(fields)
    return fill_model(hooked, original, tokens, name, settings)


def _load_official(
    official: str,
    weights: str | Path | None,
    tokenizer: str | Path | PreTrainedTokenizerBase | None,
    settings: Settings,
) -> Model:
    """Loads by a name that TransformerLens knows, with its own or with other weights."""
    from transformer_lens import HookedTransformer
    from transformer_lens import loading_from_pretrained as loading

    if official.lower().startswith(("t5", "google-t5", "google-bert", "bert")):
        raise SafeheadError(f"{official} is not a causal language model: choose one that is")
    if official.startswith(loading.NEED_REMOTE_CODE_MODELS):
        raise NotConvertibleError(
            f"TransformerLens would run code that comes with {official}, which is not done unasked."
        )
    tokens = None if tokenizer is None else load_tokenizer(tokenizer)
    with quiet(), foreign(f"TransformerLens cannot load {official}"):
        try:
            if weights is None:
                model = HookedTransformer.from_pretrained_no_processing(
                    official,
                    dtype=settings.dtype,
                    device=settings.device,
                    default_prepend_bos=settings.prepend_bos,
                    tokenizer=tokens,
                )
                with contextlib.suppress(OSError):
                    remember_ends(model, GenerationConfig.from_pretrained(official))
                return model.eval().requires_grad_(False)
            original = load_original(weights, settings.dtype)
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
                "granted (hf auth login)? Offline, download the model elsewhere and give "
                "the directory it was saved to"
            ) from error
    tokens = tokens or load_tokenizer(weights)
    return fill_model(config, original, tokens, official, settings)
