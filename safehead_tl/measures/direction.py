"""The refusal direction: where harmful and harmless prompts differ in the residual stream."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from safehead_tl.errors import SafeheadError
from safehead_tl.models import Model
from safehead_tl.prompts import Prompts, Template
from safehead_tl.results import Provenance, Saved
from safehead_tl.scan import Baseline, Run, Search, check_run, even_slices, run_layer

StreamSite: TypeAlias = Literal["resid_pre", "resid_mid", "resid_post"]


@dataclass(frozen=True, eq=False)
class RefusalDirection(Saved):
    """A difference of mean last-token states, harmful less harmless, at one place of the stream.

    Attributes:
        vector: the difference, in float32 on the CPU.
        layer: the layer that it was taken at.
        site: before the layer (`"resid_pre"`), between its attention and its MLP (`"resid_mid"`) or
            behind it (`"resid_post"`).
        provenance: what it was computed from; `prompts` are the harmful ones, and `settings` says
            which were harmless.
    """

    vector: Float[Tensor, " d_model"]
    layer: int
    site: StreamSite
    provenance: Provenance

    def __repr__(self) -> str:
        size = float(self.vector.norm())
        return f"<RefusalDirection: layer {self.layer}, {self.site}, length {size:.4g}>"

    def describe(self) -> dict[str, Any]:
        """For the provenance of what it is used for."""
        harmful, harmless = self.provenance.prompts, self.provenance.settings["harmless"]
        return {
            "layer": self.layer,
            "site": self.site,
            "harmful": harmful["prompt_count"],
            "harmless": harmless["prompt_count"],
            **digest(self.vector),
        }

    @override
    def _to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        told = {"layer": self.layer, "site": self.site, "provenance": self.provenance.to_dict()}
        return {"vector": self.vector}, told

    @classmethod
    @override
    def _from_file(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> RefusalDirection:
        provenance = Provenance(**header["provenance"])
        return cls(tensors["vector"], header["layer"], header["site"], provenance)


def refusal_direction(
    model: Model,
    harmful: Prompts,
    harmless: Prompts,
    *,
    layer: int,
    site: StreamSite = "resid_pre",
    template: Template = "auto",
    run: Run = Run(),
) -> RefusalDirection:
    """Takes the mean last-token state of harmful prompts less that of harmless ones.

    That is the difference of means of arXiv 2406.11717 (Arditi et al. 2024), which chooses among
    layers and positions by what ablating each direction does to answers; here you choose.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        harmful: prompts that the model refuses.
        harmless: prompts that it helps with.
        layer: the layer, counted from 0.
        site: `"resid_pre"`, `"resid_mid"` (not where attention and MLP read the same stream) or
            `"resid_post"`.
        template: as in `ships`.
        run: how it runs; a pass of each prompt leaves no pieces to keep, so without `run_dir`.

    Returns:
        The direction, at its own length. Costs a pass of each prompt, up to the layer.

    Raises:
        SafeheadError: for prompts, template, layer or site that cannot be used, or if both kinds
            have the same mean.

    Example:
        >>> model = sh.load_model("demo")
        >>> sh.refusal_direction(model, "demo/harmful", "demo/benign", layer=2)
        <RefusalDirection: layer 2, resid_pre, length 1.134>
    """
    check_run(run, keeping_nothing="refusal_direction")
    apart = replace(run, shared_prefix=False)
    searches = [
        Search.start(model, prompts, template, "zero", apart) for prompts in (harmful, harmless)
    ]
    layers = model.cfg.n_layers
    if not (isinstance(layer, int) and 0 <= layer < layers):
        raise SafeheadError(f"layer={layer}: this model has layers 0 to {layers - 1}")
    if site not in get_args(StreamSite):
        raise SafeheadError(
            f"site={site!r} is not known: use {', '.join(map(repr, get_args(StreamSite)))}"
        )
    if site == "resid_mid" and (model.cfg.parallel_attn_mlp or model.cfg.attn_only):
        raise SafeheadError(
            "in this model nothing lies between attention and MLP, so site='resid_mid' cannot be "
            "read: use 'resid_pre' or 'resid_post'"
        )
    one, other = (_mean_state(search, layer, site) for search in searches)
    vector = (one - other).float()
    if not vector.isfinite().all() or not vector.any():
        raise SafeheadError(
            f"at layer {layer}, {site}, harmful and harmless prompts have the same mean, or one "
            "that is no finite number: take another layer, or other prompts"
        )
    settings = {"layer": layer, "site": site, "harmless": searches[1].batch.describe()}
    return RefusalDirection(vector, layer, site, searches[0].provenance(settings))


@torch.no_grad()
def _mean_state(search: Search, layer: int, site: StreamSite) -> Float[Tensor, " d_model"]:
    """The mean last-token state, in float64 on the CPU."""
    model, seen = search.model, list[Tensor]()
    if site == "resid_post" and layer == model.cfg.n_layers - 1:
        return search.original.double().mean(0).cpu()
    baseline = Baseline(
        model, search.batch, search.ablation, (), search.plan, search.passes, search.ledger.cost
    )
    name = f"blocks.{layer}.hook_resid_mid"

    def run() -> Tensor:
        seen.clear()
        for part in baseline.parts:
            stream = baseline.before(part, layer + (site == "resid_post"))
            if site != "resid_mid":
                seen.append(stream.rest[:, -1].clone())
                continue
            for rows in even_slices(len(stream.rest), search.passes.rows):
                hooks = [(name, lambda state, hook: seen.append(state[:, -1].clone()))]
                run_layer(model, stream.prompts(rows), layer, hooks)
                search.ledger.cost.add(stream.rest[rows], 1)
        return torch.cat(seen).double().mean(0).cpu()

    return search.passes.fitted(run)


def digest(vector: Float[Tensor, " d_model"]) -> dict[str, str]:
    """What a vector is told from others by."""
    content = vector.detach().cpu().double().numpy().tobytes()
    return {"vector": hashlib.sha256(content).hexdigest()[:16]}
