"""Parts of a forward pass: some layers, the last query alone, or a block without its attention.

What a scan needs of a model is seldom a whole pass. These functions run what is needed through
TransformerLens's own blocks, so that every architecture it knows stays as it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safehead_tl.models import bridge
from safehead_tl.models.identity import Hook, Model, has_hooks, hook_point, is_bridge
from safehead_tl.models.keys import KeysAndValues, LastQuery, Past, Recorded
from safehead_tl.models.undoing import hooked, undone


def embed(
    model: Model, tokens: Int[Tensor, "prompt pos"], mask: Int[Tensor, "prompt pos"]
) -> tuple[Float[Tensor, "prompt pos d_model"], Float[Tensor, "prompt pos d_model"] | None]:
    """The residual stream before layer 0, and the position embedding of shortformer models."""
    if is_bridge(model):
        return bridge.embed(model, tokens, mask), None
    resid, _, positions, _ = model.input_to_embed(tokens, attention_mask=mask)
    return resid, positions


def run_layers(
    model: Model,
    resid: Float[Tensor, "row pos d_model"],
    mask: Int[Tensor, "row key"],
    *,
    start: int,
    stop: int | None = None,
    hooks: Sequence[Hook] = (),
    positions: Float[Tensor, "row pos d_model"] | None = None,
    past: Past | None = None,
) -> Float[Tensor, "row pos d_model"]:
    """Runs the layers from `start` to before `stop`; by default to the end.

    The mask covers past positions too; `positions` is the position embedding of shortformer models.
    """
    stop = model.cfg.n_layers if stop is None else stop
    if start >= stop:
        return resid
    if is_bridge(model):
        return bridge.run_blocks(model, resid, mask, start=start, stop=stop, hooks=hooks)
    # Removing hooks, which TransformerLens does at all hook points, takes longer than tiny layers.
    with hooked(model, hooks) if hooks else nullcontext():
        forward: Any = model.forward
        output: Tensor = forward(
            resid,
            start_at_layer=start,
            stop_at_layer=stop,
            attention_mask=mask,
            shortformer_pos_embed=positions,
            past_kv_cache=past,
        )
    return output


def run_prefix(
    model: Model,
    resid: Float[Tensor, "prefix past d_model"],
    *,
    start: int,
    stop: int,
    hooks: Sequence[Hook] = (),
) -> tuple[Float[Tensor, "prefix past d_model"], Past]:
    """Runs layers on prefixes, and keeps what rows that begin with them need.

    Of the model's last layer only keys and values are kept.

    Returns:
        The residual stream before layer `stop` (at most the last), and keys and values.
    """
    entries, last = {layer: Recorded() for layer in range(start, stop)}, model.cfg.n_layers - 1
    mask = torch.ones(resid.shape[:2], dtype=torch.long, device=resid.device)
    resid = run_layers(
        model, resid, mask, start=start, stop=min(stop, last), hooks=hooks, past=entries
    )
    if stop > last:
        entry = entries[last]
        run_attention(model, last, resid, mask, last_query=True, hooks=hooks, past=entry)
    return resid, {layer: entry.shared for layer, entry in entries.items() if entry.shared}


def run_to_last_state(
    model: Model,
    resid: Float[Tensor, "row pos d_model"],
    mask: Int[Tensor, "row key"],
    *,
    start: int,
    apart: bool,
    hooks: Sequence[Hook] = (),
    positions: Float[Tensor, "row pos d_model"] | None = None,
    past: Past | None = None,
) -> Float[Tensor, "row d_model"]:
    """The last position's state after the last layer; arguments as for `run_layers`.

    With `apart`, the last layer runs for the last query only.
    """
    last = model.cfg.n_layers - 1
    if not apart:
        whole = run_layers(
            model, resid, mask, start=start, hooks=hooks, positions=positions, past=past
        )
        return whole[:, -1].clone()  # a view would keep all positions alive
    resid = run_layers(model, resid, mask, start=start, stop=last, hooks=hooks, past=past)
    return run_last_layer(model, resid, mask, hooks=hooks, past=past)


def run_last_layer(
    model: Model,
    resid: Float[Tensor, "row pos d_model"],
    mask: Int[Tensor, "row key"],
    *,
    hooks: Sequence[Hook] = (),
    past: Past | None = None,
) -> Float[Tensor, "row d_model"]:
    """Runs the last layer where it is read: keys and values of all positions, one query."""
    layer = model.cfg.n_layers - 1
    entry = None if past is None else past[layer]
    inputs = _attention_inputs(model, layer, resid, entry, last_query=True)
    del inputs["query_input"]  # the block makes its own, of the one position that it is given
    forward = model.blocks[layer].attn.forward
    with _attention_by(model, layer, lambda **given: forward(**{**given, **inputs})):
        return run_layers(model, resid[:, -1:], mask, start=layer, hooks=hooks)[:, 0]


def run_attention(
    model: Model,
    layer: int,
    resid: Float[Tensor, "row pos d_model"],
    mask: Int[Tensor, "row key"],
    *,
    last_query: bool,
    hooks: Sequence[Hook] = (),
    past: KeysAndValues | None = None,
) -> tuple[Float[Tensor, "row query d_model"], Float[Tensor, "row query head d_head"]]:
    """A layer's attention alone: what it adds to the stream, and the heads' outputs z."""
    found: list[Tensor] = []
    keep = (hook_point(layer, "z"), lambda z, hook: found.append(z))
    with hooked(model, [*hooks, keep]):
        output = model.blocks[layer].attn(
            **_attention_inputs(model, layer, resid, past, last_query), attention_mask=mask
        )
    return output, found[0]


def attention_given(
    model: Model, layer: int, output: Float[Tensor, "row query d_model"]
) -> AbstractContextManager[None]:
    """Inside the `with` block, a layer's attention is not computed: it is `output`."""
    return _attention_by(model, layer, lambda **inputs: output)


@contextmanager
def _attention_by(model: Model, layer: int, forward: Callable[..., Any]) -> Iterator[None]:
    attention = vars(model.blocks[layer].attn)
    with undone(model, lambda: attention.pop("forward", None)):
        attention["forward"] = forward  # in front of the class's own
        yield


def _attention_inputs(
    model: Model, layer: int, resid: Tensor, past: KeysAndValues | None, last_query: bool
) -> dict[str, Any]:
    from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

    if model.cfg.original_architecture in POST_NORM_ARCHITECTURES:
        normed = resid
    else:
        normed = model.blocks[layer].ln1(resid)
    return {
        "query_input": normed[:, -1:] if last_query else normed,
        "key_input": normed,
        "value_input": normed,
        "past_kv_cache_entry": LastQuery(past, resid.shape[1]) if last_query else past,
    }


def runs_in_parts(model: Model) -> bool:
    """Whether positions and blocks of this model may be run apart, as the functions above do.

    Not with hooks of the user's, TransformerLens's or PyTorch's, which may look at any position;
    nor over several devices, with inputs of attention that are split by head, shortformer
    positions, quantised weights or bidirectional attention. And not a bridge, whose blocks
    differ from family to family.
    """
    config = model.cfg
    return not is_bridge(model) and (
        config.attention_dir == "causal"
        and config.positional_embedding_type in ("rotary", "standard", "alibi")
        and config.n_devices == 1
        and not (config.use_split_qkv_input or config.use_attn_in or config.load_in_4bit)
        and not has_hooks(model)
    )


def all_logits(
    model: Model, tokens: Int[Tensor, "row pos"], mask: Int[Tensor, "row pos"]
) -> Float[Tensor, "row pos vocab"]:
    """Logits at every position of a left-padded batch."""
    if is_bridge(model):
        return bridge.all_logits(model, tokens, mask)
    logits: Tensor = model(tokens, attention_mask=mask)
    return logits


def next_logits(
    model: Model, batch_size: int, use_cache: bool
) -> Callable[[Int[Tensor, "row pos"], Int[Tensor, "row pos"]], Float[Tensor, "row vocab"]]:
    """A function of growing tokens and their mask that gives the next token's logits."""
    if is_bridge(model):
        return bridge.next_logits(model, use_cache)
    from transformer_lens import TransformerLensKeyValueCache

    device, done = model.cfg.device, 0
    init = TransformerLensKeyValueCache.init_cache
    cache = init(model.cfg, device, batch_size) if use_cache else None

    def step(tokens: Tensor, mask: Tensor) -> Tensor:
        nonlocal done
        logits: Tensor = model(tokens[:, done:], attention_mask=mask[:, done:], past_kv_cache=cache)
        done = tokens.shape[1] if use_cache else 0
        return logits[:, -1]

    return step
