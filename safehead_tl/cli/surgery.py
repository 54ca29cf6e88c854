"""The commands that write checkpoints: `export`, `splice`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from safehead_tl.cli.console import console, require_files, write_json
from safehead_tl.cli.options import (
    AblationName,
    Column,
    Device,
    Epsilon,
    Heads,
    Json,
    Limit,
    ModelName,
    Overwrite,
    Split,
    TemplateText,
    Via,
    chosen_ablation,
    chosen_heads,
)
from safehead_tl.prompts import load_prompts
from safehead_tl.surgery import Part
from safehead_tl.surgery import export as write_ablated
from safehead_tl.surgery import splice as take_attention


def export(
    model: ModelName,
    heads: Heads,
    out: Annotated[Path, typer.Option(help="The directory to write.")],
    ablation: AblationName = "undifferentiated",
    epsilon: Epsilon = None,
    via: Via = None,
    prompts: Annotated[
        str | None, typer.Option(help="Compare logits on these; default: random tokens.")
    ] = None,
    template: TemplateText = "direct",
    column: Column = None,
    split: Split = None,
    limit: Limit = None,
    device: Device = None,
    overwrite: Overwrite = False,
    json_out: Json = None,
) -> None:
    """Write a Hugging Face checkpoint with heads ablated in its weights, verified."""
    require_files(json_out)
    what = chosen_ablation(ablation, epsilon, via)
    texts = prompts and load_prompts(prompts, column=column, split=split, limit=limit)
    done = write_ablated(
        model,
        chosen_heads(heads),
        out,
        ablation=what,
        prompts=texts or None,
        template=template,
        device=device,
        overwrite=overwrite,
    )
    if str(json_out) != "-":
        console.print(
            f"Wrote {done.directory}: {done.changes}. Its logits equal those of the model with "
            f"hooks to {done.max_difference:.1e}. Its safety behaviour is altered; its README.md "
            "says so."
        )
    write_json(json_out, done.to_dict())


def splice(
    target: Annotated[str, typer.Argument(help="What gets the attention and keeps the rest.")],
    donor: Annotated[str, typer.Argument(help="Whose attention is taken.")],
    out: Annotated[Path, typer.Option(help="The directory to write.")],
    part: Annotated[
        list[str] | None,
        typer.Option(help="q, k, v, o, norm or sinks; repeat it. Default: all there are."),
    ] = None,
    layer: Annotated[
        list[int] | None, typer.Option(help="A layer, from 0; repeat it. Default: all.")
    ] = None,
    overwrite: Overwrite = False,
    json_out: Json = None,
) -> None:
    """Put the attention weights of one checkpoint into another, verified."""
    require_files(json_out)
    parts = cast("list[Part] | None", part or None)
    done = take_attention(
        target, donor, out, parts=parts, layers=layer or None, overwrite=overwrite
    )
    if str(json_out) != "-":
        console.print(
            f"Wrote {done.directory}: {target} with attention ({', '.join(done.parts)}) of "
            f"{donor}; {done.changes} changed. Its safety behaviour may be altered; its README.md "
            "says so."
        )
    write_json(json_out, done.to_dict())
