"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import safehead_tl as sh
from safehead_tl.cli import options
from safehead_tl.cli.output import Output


@options.grouped
def export(
    model: options.ModelName,
    heads: options.Heads,
    out: Annotated[Path, typer.Option(help="The directory to write.")],
    ablation: options.AblationOptions,
    prompts: options.CheckOptions,
    output: Output,
    device: options.Device = None,
) -> None:
    """Write a Hugging Face checkpoint with heads ablated in its weights, verified."""
    form, what = prompts.form, ablation.chosen()
    done = sh.export(
        model,
        options.chosen_heads(heads),
        out,
        ablation=what,
        prompts=prompts.load() if prompts.prompts else None,
        template=form,
        device=device,
        overwrite=output.overwrite,
    )
    output.write(done)
    output.tell(
        f"Wrote {done.directory}: {done.changes}. Its logits equal those of the model with "
        f"hooks to {done.max_difference:.1e}. Its safety behaviour is altered; its README.md "
        "says so."
    )
