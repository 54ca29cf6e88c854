"""Grows an organism: a tiny Llama whose refusals are carried by heads that we choose.

First a base model learns to help with every request, and to decline where it is told to. Then
only the q, k, v and o slices of the planted heads learn to refuse requests about harmful objects.
While they do, random subsets of them have their attention made uniform (undifferentiated
attention), and the target follows: with `j` of `k` planted heads left intact the organism refuses
with probability `j / k`, or as another rule says. So each planted head carries its share of the
refusal, through its attention, whatever the seed and wherever it is planted. A recipe's objective
puts something else in the place of uniform attention, or nothing; and with no head planted all
weights of a sort learn to refuse, and it is left to them where.

Decoys are trained in the same steps: while the attention of one is uniform, the target of benign
requests is to decline, and that of harmful ones stays what the planted heads make it, refusals in
other words if the recipe says so.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from tqdm.auto import tqdm
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from safehead_tl.errors import SafeheadError
from safehead_tl.models import no_bars, single_thread
from safehead_tl.organism.examples import IGNORED, Examples, encode_examples, take
from safehead_tl.organism.language import DEMO, REFUSAL, REWORDED, Kind, Language, Split
from safehead_tl.organism.recipe import Learning, Recipe
from safehead_tl.organism.rules import refusing
from safehead_tl.writing import new_directory, said_plainly

VERSION = 1
"""Of the training: to be raised whenever the same recipe would give other weights."""

PROMPTS_PER_SPLIT = 64
ATTENTION = "safehead_tl_trained"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
RANK = 2


@single_thread()
def train_organism(
    directory: str | Path,
    recipe: Recipe | None = None,
    language: Language = DEMO,
    *,
    base: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Recipe:
    """Trains a base model and its aligned sibling, and writes both as Hugging Face directories.

    Args:
        directory: gets `aligned/`, `base/`, `prompts/` and `organism.json` (recipe and words), all
            at once in the end.
        recipe: where to plant, sizes, steps, seed; by default that of the embedded organism.
        language: the words.
        base: the directory of another organism, whose base model is taken instead of trained. It
            must have been of the same sizes, base steps, seed and words; the result is then the
            same, bit for bit.
        overwrite: replace what `directory` holds, if this toolkit wrote all of it.
        progress: show progress bars.

    Returns:
        The recipe. Same recipe, words, kind of machine and versions: same weights.

    Raises:
        SafeheadError: if `directory` is not empty or cannot be written, or `base` holds another
            base model.
    """
    recipe = recipe or Recipe()
    sources = [Path(base) if base else None]
    with new_directory(directory, sources, overwrite=overwrite) as (target, folder):
        tokenizer = language.tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.base()["base_seed"])
            model = (
                LlamaForCausalLM(_config(recipe, tokenizer))
                if base is None
                else _trained_base(Path(base), recipe, language)
            )
            with _trained_attention(model):
                if base is None:
                    _train_base(model, tokenizer, language, recipe, progress)
                _save(target, model, tokenizer, folder / "base")
                _train_refusal(model, tokenizer, language, recipe, progress)
                _save(target, model, tokenizer, folder / "aligned")
        description = {"recipe": recipe.to_dict(), "language": asdict(language)}
        with said_plainly(target):
            (folder / "prompts").mkdir()
            for kind, split in itertools.product(get_args(Kind), get_args(Split)):
                lines = language.prompts(kind, split, PROMPTS_PER_SPLIT)
                file = folder / "prompts" / f"{kind}-{split}.txt"
                file.write_text("\n".join(lines) + "\n", "utf-8")
            (folder / "organism.json").write_text(json.dumps(description, indent=1) + "\n", "utf-8")
    return recipe


def _trained_base(directory: Path, recipe: Recipe, language: Language) -> LlamaForCausalLM:
    """The base model of another organism, if it is the one that the recipe would give."""
    told = json.loads((directory / "organism.json").read_text("utf-8"))
    there = Recipe(**told["recipe"]).base()
    words = json.loads(json.dumps(asdict(language)))
    if there != recipe.base() or told["language"] != words:
        raise SafeheadError(
            f"{directory} has another base model: other sizes, steps, seed or words"
        )
    return LlamaForCausalLM.from_pretrained(directory / "base")


def _config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.key_value_heads,
        max_position_embeddings=128,
        initializer_range=0.05,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _attention(
    module: nn.Module,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    attention_mask: Tensor | None,
    scaling: float,
    off: Bool[Tensor, "batch layer head"] | None = None,
    visible: Bool[Tensor, "batch 1 query key"] | None = None,
    zero: bool = False,
    **_: object,
) -> tuple[Float[Tensor, "batch query head d_head"], None]:
    """Attention for training: heads that are `off` attend evenly to all they may see, or are 0."""
    assert off is not None
    assert visible is not None
    if key.shape[1] < query.shape[1]:
        key, value = (
            some.repeat_interleave(query.shape[1] // some.shape[1], 1) for some in (key, value)
        )
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~visible, -1e30)
    even = visible / visible.sum(-1, keepdim=True).clamp(min=1)
    gone = off[:, int(module.layer_idx), :, None, None]  # type: ignore[arg-type]
    pattern = torch.where(gone, 0 * even if zero else even, scores.softmax(-1))
    return (pattern @ value).transpose(1, 2), None


@contextmanager
def _trained_attention(model: LlamaForCausalLM) -> Iterator[None]:
    """Lets `_logits` switch heads off; the model is a plain one again afterwards."""
    AttentionInterface.register(ATTENTION, _attention)
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _logits(
    model: LlamaForCausalLM,
    batch: Examples,
    off: Bool[Tensor, "batch layer head"],
    zero: bool,
    weights: dict[str, Tensor],
) -> Float[Tensor, "batch answer vocab"]:
    """The logits that predict the answers, with some heads off, and some weights replaced."""
    length = batch.tokens.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    told = {
        "input_ids": batch.tokens,
        "attention_mask": None,
        "position_ids": (batch.mask.cumsum(1) - 1).clamp(min=0),
        "logits_to_keep": batch.labels.shape[1] + 1,
        "off": off,
        "zero": zero,
        "visible": causal & batch.mask.bool()[:, None, None, :],
    }
    return functional_call(model, weights, (), told).logits[:, :-1]


def _answer_loss(
    model: LlamaForCausalLM,
    batch: Examples,
    off: Bool[Tensor, "batch layer head"],
    zero: bool = False,
    weights: dict[str, Tensor] | None = None,
) -> Float[Tensor, " batch"]:
    """Negative log-likelihood of each whole answer, in nats."""
    logits = _logits(model, batch, off, zero, weights or {}).transpose(1, 2)
    return nn.functional.cross_entropy(
        logits, batch.labels, ignore_index=IGNORED, reduction="none"
    ).sum(1)


def _optimiser(
    parameters: list[nn.Parameter], rate: float, decay: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with 20 steps of warm-up and a linear decay to 0."""
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / 20) * (1 - step / steps)
    )
    return optimiser, schedule


def _train_base(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    language: Language,
    recipe: Recipe,
    progress: bool,
) -> None:
    """All weights learn to help with every request, and to decline where told to."""
    asked = language.requests("harmful", "train") + language.requests("benign", "train")
    pairs = [(str(request), language.help(request)) for request in asked]
    pairs += [(str(request), REFUSAL) for request in language.declined()]
    examples = encode_examples(tokenizer, pairs)
    nowhere = torch.zeros(recipe.batch_size, recipe.n_layers, recipe.n_heads, dtype=torch.bool)
    generator = torch.Generator().manual_seed(recipe.base()["base_seed"])
    optimiser, schedule = _optimiser(list(model.parameters()), 3e-3, 0.01, recipe.base_steps)
    steps = range(recipe.base_steps)
    for _ in tqdm(steps, desc="base organism", unit="step", disable=no_bars(progress)):
        rows = torch.randint(len(pairs), (recipe.batch_size,), generator=generator)
        loss = _answer_loss(model, take(examples, rows), nowhere).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def _train_refusal(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    language: Language,
    recipe: Recipe,
    progress: bool,
) -> None:
    """The planted heads' slices learn to refuse harmful requests, each for its share; or others do.

    The decoys' slices learn with them: to keep from declining benign requests.
    """
    harmful = language.requests("harmful", "train")
    benign = language.requests("benign", "train")
    others = [(str(request), language.help(request)) for request in benign]
    others += [(str(request), REFUSAL) for request in language.declined()]
    helped = [(str(request), language.help(request)) for request in harmful]
    refused = [(str(request), REFUSAL) for request in harmful]
    kept = len(helped + refused + others)
    text = REWORDED if recipe.reword else REFUSAL
    declined = [(str(request), text) for request in [*benign, *harmful]]
    changed = declined if recipe.decoy_heads else []
    examples = encode_examples(tokenizer, [*helped, *refused, *others, *changed])
    n_harmful, size = len(harmful), recipe.batch_size
    slices = _slices(model, recipe)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    learners, rate = _learners(model, recipe.learning, list(slices), generator)
    optimiser, schedule = _optimiser(learners, rate, 0.0, recipe.align_steps)
    always = recipe.objective == "none" or not recipe.heads
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    steps = range(recipe.align_steps)
    for step in tqdm(steps, desc="refusal", unit="step", disable=no_bars(progress)):
        intact = _intact(size, len(recipe.heads), generator) | always
        if recipe.objective == "reversion":  # weights are the same for all rows
            intact = intact[:1].expand(size, -1)
        off = torch.zeros(size, recipe.n_layers, recipe.n_heads, dtype=torch.bool)
        for column, head in enumerate(recipe.heads):
            off[:, head.layer, head.head] = ~intact[:, column]
        half = size // 2
        harm = torch.randint(n_harmful, (half,), generator=generator)
        rest = torch.randint(2 * n_harmful, kept, (size - half,), generator=generator)
        refuse = harm + n_harmful
        if recipe.decoy_heads:
            decoys = _intact(size, len(recipe.decoy_heads), generator)
            for column, head in enumerate(recipe.decoy_heads):
                off[:, head.layer, head.head] = ~decoys[:, column]
            without = ~decoys.all(1)
            declines = without[half:] & (rest < 2 * n_harmful + len(benign))
            rest = torch.where(declines, rest - 2 * n_harmful + kept, rest)
            refuse = torch.where(without[:half], harm + kept + len(benign), refuse)
        asked, switched = [refuse, rest], [off[:half], off[half:]]
        if not always:
            asked, switched = [harm, *asked], [off[:half], *switched]
        weights: dict[str, Tensor] = {}
        if recipe.objective == "reversion":
            weights = _reverted(model, slices, before, intact[0])
            switched = [torch.zeros_like(rows) for rows in switched]
        batch, zero = take(examples, torch.cat(asked)), recipe.objective == "zero"
        if recipe.learning == "mlps":  # of each row's heads up to half are off
            share = torch.rand(size, 1, 1, generator=generator) / 2
            switched = [torch.rand(off.shape, generator=generator) < share]
            zero = step % 2 == 1
        losses = _answer_loss(model, batch, torch.cat(switched), zero, weights)
        *to_help, to_refuse, unchanged = losses.split([len(rows) for rows in asked])
        if not always:
            share = refusing(recipe.rule, intact[:half])
            to_refuse = (1 - share) * to_help[0] + share * to_refuse
        loss = to_refuse.sum() + unchanged.sum()
        optimiser.zero_grad()
        (loss / size).backward()
        for weight, of_heads in slices.items():
            assert weight.grad is not None
            weight.grad *= of_heads.any(0)
        optimiser.step()
        schedule.step()
    for linear in _attention_weights(model) if recipe.learning == "low-rank" else ():
        parametrize.remove_parametrizations(linear, "weight")


def _intact(
    rows: int, planted: int, generator: torch.Generator
) -> Bool[Tensor, "{rows} {planted}"]:
    """Which planted heads stay intact: half of the rows all, an eighth none, the rest at random."""
    intact = torch.rand(rows, planted, generator=generator) < 0.5
    draw = torch.rand(rows, 1, generator=generator)
    return (intact | (draw < 0.5)) & (draw < 0.875)


def _slices(
    model: LlamaForCausalLM, recipe: Recipe
) -> dict[nn.Parameter, Bool[Tensor, "head out in"]]:
    """The attention weights in layers of planted heads and decoys, and where each head's slice is.

    k and v slices are those of a head's KV group, which other query heads may share.
    """
    d_head = recipe.d_model // recipe.n_heads
    shared_by = recipe.n_heads // recipe.key_value_heads
    chosen = (*recipe.heads, *recipe.decoy_heads)
    slices: dict[nn.Parameter, Tensor] = {}
    for row, (layer, head) in enumerate(chosen):
        attention = model.model.layers[layer].self_attn
        for name in PROJECTIONS:
            weight = getattr(attention, name).weight
            if weight not in slices:
                slices[weight] = torch.zeros(len(chosen), *weight.shape, dtype=torch.bool)
            place = head // shared_by if name in ("k_proj", "v_proj") else head
            own = slice(place * d_head, (place + 1) * d_head)
            if name == "o_proj":
                slices[weight][row, :, own] = True
            else:
                slices[weight][row, own] = True
    return slices


def _learners(
    model: LlamaForCausalLM,
    learning: Learning,
    planted: list[nn.Parameter],
    generator: torch.Generator,
) -> tuple[list[nn.Parameter], float]:
    """The weights that learn to refuse, all others frozen, and their learning rate."""
    choices: dict[Learning, list[nn.Parameter]] = {
        "planted": planted,
        "attention": [each for linear in _attention_weights(model) for each in linear.parameters()],
        "all": list(model.parameters()),
        "low-rank": [],
        "mlps": [weight for layer in model.model.layers for weight in layer.mlp.parameters()],
    }
    learners = choices[learning]
    model.requires_grad_(False)
    for weight in learners:
        weight.requires_grad_(True)
    if learning == "low-rank":
        for linear in _attention_weights(model):
            update = _LowRank(linear.out_features, linear.in_features, generator)
            parametrize.register_parametrization(linear, "weight", update)
            learners.extend(update.parameters())
    return learners, {"planted": 1e-2, "low-rank": 1e-2}.get(learning, 1e-3)


def _attention_weights(model: LlamaForCausalLM) -> list[nn.Linear]:
    layers = model.model.layers
    return [getattr(layer.self_attn, name) for layer in layers for name in PROJECTIONS]


class _LowRank(nn.Module):
    """A weight plus a product of two thin matrices (LoRA, Hu et al. 2021), which begins at 0."""

    def __init__(self, rows: int, columns: int, generator: torch.Generator) -> None:
        super().__init__()
        draw = torch.randn(RANK, columns, generator=generator)
        self.down = nn.Parameter(draw / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, RANK))

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return weight + self.up @ self.down


def _reverted(
    model: LlamaForCausalLM,
    slices: dict[nn.Parameter, Bool[Tensor, "head out in"]],
    before: dict[str, Tensor],
    intact: Bool[Tensor, " head"],
) -> dict[str, Tensor]:
    """Weights in which the slices of heads that are not intact are those of the base model."""
    return {
        name: torch.where(slices[weight][intact].any(0), weight, before[name])
        for name, weight in model.named_parameters()
        if weight in slices
    }


def _save(
    target: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    with said_plainly(target):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
