"""What the rest of the toolkit asks of a model: who it is, and where it can be read and hooked."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor, nn

from safehead_tl.errors import SafeheadError

if TYPE_CHECKING:  # a TransformerBridge has the same parts, as far as they are used here
    from transformer_lens import HookedTransformer

    Model: TypeAlias = HookedTransformer
else:
    Model = nn.Module

Hook: TypeAlias = tuple[str, Callable[..., Any]]
"""A hook point's name and a function `(tensor, hook) -> tensor | None`."""

Site: TypeAlias = Literal["final_norm", "resid_post"]
SITES: tuple[Site, ...] = ("final_norm", "resid_post")

SpecialTokens: TypeAlias = Literal["special", "literal"]


@dataclass(frozen=True)
class ModelSource:
    """Where a model came from, and which weights it holds.

    Attributes:
        name: what it was loaded by; for a model that the user built, its config's name.
        revision: the hub's commit, where there is one.
        weights: what `weights=` named, if anything.
        trust_remote_code: whether code that comes with it was allowed to run.
        config_hash: SHA-256 of its TransformerLens config.
        weights_hash: SHA-256 over 256 values of every parameter, and the sum of all its bits.
    """

    name: str
    revision: str | None
    weights: str | None
    trust_remote_code: bool
    config_hash: str
    weights_hash: str


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_sources: weakref.WeakKeyDictionary[nn.Module, tuple[str, str | None, str | None, bool]] = (
    weakref.WeakKeyDictionary()
)
_ends: weakref.WeakKeyDictionary[nn.Module, tuple[int, ...]] = weakref.WeakKeyDictionary()
SAMPLE = 256
"""Numbers of each weight that its hash is over, besides their sum."""

_readings: weakref.WeakKeyDictionary[nn.Module, SpecialTokens] = weakref.WeakKeyDictionary()


def remember_source(
    model: Model, name: str, revision: str | None, weights: str | None, trusted: bool
) -> None:
    """Notes what a model was loaded from, for `describe`."""
    _sources[model] = (name, revision, weights, trusted)


def remember_reading(model: Model, special_tokens: SpecialTokens | None) -> None:
    """Notes how special tokens in prompts are read; `None` leaves that as it is."""
    if special_tokens is not None:
        _readings[model] = special_tokens


def reading(model: Model) -> SpecialTokens:
    """How special tokens in prompts are read: see `load_model`."""
    return _readings.get(model, "special")


def remember_ends(model: Model, settings: Any) -> None:
    """Notes which tokens end a text by a checkpoint's generation settings, for `end_tokens`."""
    ends = getattr(settings, "eos_token_id", None)
    found = () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)
    if not all(type(end) is int and end >= 0 for end in found):
        raise SafeheadError(f"the checkpoint's generation settings say eos_token_id={ends!r}")
    _ends[model] = found


def end_tokens(model: Model) -> list[int]:
    """The tokens that end a text: the tokenizer's, and those of the generation settings.

    Chat models may have several: Gemma ends turns with a token that is not its tokenizer's EOS.
    """
    told = getattr(model.tokenizer, "eos_token_id", None)
    found = {*_ends.get(model, ()), *([] if told is None else [told])}
    return sorted(found)


def is_bridge(model: nn.Module) -> bool:
    """Whether a model is a `TransformerBridge`, and not a `HookedTransformer`."""
    return hasattr(model, "original_model")


def describe(model: Model) -> dict[str, Any]:
    """Says which model this is, for a result's provenance.

    Besides `ModelSource`: dtype, device, sizes, whether weights were processed, and the hook
    points at which the user's own hooks act.
    """
    own = (str(model.cfg.model_name), None, None, False)
    name, revision, weights, trusted = _sources.get(model, own)
    fields = {
        key: str(value)
        for key, value in sorted(model.cfg.to_dict().items())
        if key not in ("device", "n_devices", "model_name", "tokenizer_name", "seed")
    }
    parameters, sums = sorted(model.named_parameters()), []
    samples = torch.empty(len(parameters), SAMPLE, device=model.cfg.device)
    for number, (_, parameter) in enumerate(parameters):
        flat = parameter.detach().flatten()
        bits = flat.contiguous().view(_BITS[flat.element_size()])
        sums.append(bits.sum(dtype=torch.int64).to(model.cfg.device))
        sample = flat[sample_places(len(flat)).to(flat.device)]
        samples[number] = sample.float().to(model.cfg.device)
    # Read at once: whatever is read of a GPU waits until all before it is computed.
    read = zip(parameters, torch.stack(sums).tolist(), samples.cpu(), strict=True)
    digest = hashlib.sha256()
    for (key, parameter), total, sample in read:
        digest.update(f"{total}{key} {tuple(parameter.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    source = ModelSource(
        name=name,
        revision=revision,
        weights=weights,
        trust_remote_code=trusted,
        config_hash=hashlib.sha256(json.dumps(fields).encode()).hexdigest(),
        weights_hash=digest.hexdigest(),
    )
    return {
        **asdict(source),
        "processed": is_processed(model),
        "kind": type(model).__name__,
        "hooks": _hooked_points(model),
        "dtype": str(model.cfg.dtype).removeprefix("torch."),
        "device": str(model.cfg.device),
        "n_layers": model.cfg.n_layers,
        "n_heads": model.cfg.n_heads,
        "n_key_value_heads": model.cfg.n_key_value_heads or model.cfg.n_heads,
    }


def _hooked_points(model: Model) -> list[str]:
    """Where hooks of the user's are, by `HookedTransformer`'s names for the places."""
    names: dict[int, str] = {}
    for name, point in model.hook_dict.items():
        if point.fwd_hooks and (name != point.name or id(point) not in names):
            names[id(point)] = name  # a bridge lists its own name first, then the alias
    return sorted(names.values())


def sample_places(length: int, count: int = SAMPLE) -> Int[Tensor, {count}]:
    """Evenly spaced indices from 0 to `length` - 1, in whole numbers: floats miss the end."""
    return torch.arange(count) * (length - 1) // (count - 1)


def hook_point(layer: int, site: str) -> str:
    """The name of a hook point in a layer's attention."""
    return f"blocks.{layer}.attn.hook_{site}"


def is_processed(model: Model) -> bool:
    """Whether norm weights were folded away, as `HookedTransformer.from_pretrained` does.

    A bridge folds them with `enable_compatibility_mode` and keeps its norms.
    """
    folded = model.cfg.normalization_type in ("LNPre", "RMSPre")
    return folded or bool(getattr(model, "compatibility_mode", False))


def require_site(model: Model, site: str) -> None:
    """Checks that the last token's state can be read at `site`.

    Raises:
        SafeheadError: for an unknown site, or `final_norm` on a model whose final norm's weight
            was folded into the unembedding.
    """
    if site not in SITES:
        raise SafeheadError(f"site={site!r} is not known: use {' or '.join(map(repr, SITES))}")
    if site == "final_norm" and is_processed(model):
        raise SafeheadError(
            "this model's final norm has its weight folded away, so site='final_norm' cannot be "
            "read: use site='resid_post', or load the model with safehead_tl.load_model"
        )


def has_hooks(module: nn.Module) -> bool:
    """Whether anything of the user's acts when a module, or one inside it, runs forward."""
    return any(
        inner._forward_hooks or inner._forward_pre_hooks or "forward" in vars(inner)
        for inner in module.modules()
    )


def require_finite(model: Model, numbers: Tensor, of: Sequence[object], what: str) -> Tensor:
    """Gives `numbers` back, a row for each of `of`, if all of them are finite.

    Raises:
        SafeheadError: naming the first row with NaN or infinity, and the reason.
    """
    finite = numbers.isfinite().flatten(1).all(1)
    if not finite.all():
        bad = of[int((~finite).nonzero()[0])]
        raise SafeheadError(f"{what} of {bad} are not finite numbers: {why_not_finite(model)}")
    return numbers


def why_not_finite(model: Model) -> str:
    """What is likely wrong with a model whose numbers are not finite."""
    if model.cfg.dtype == torch.float16:
        return "it overflows in float16; load it with dtype='bfloat16' or 'float32'"
    return "its weights hold NaN or infinity, or a hook makes some"
