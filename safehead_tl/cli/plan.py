"""The command `plan`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.table import Table

import safehead_tl as sh
from safehead_tl.cli import options
from safehead_tl.cli.output import DrawnOutput
from safehead_tl.errors import SafeheadError


@options.grouped
def plan(
    model: options.ModelName,
    prompts: options.PromptOptions,
    ablation: options.AblationOptions,
    limits: options.LimitOptions,
    output: DrawnOutput,
    measure: Annotated[
        Literal["ships", "generalized-ships", "sahara", "evaluate"],
        typer.Option(help="What is to be run."),
    ] = "ships",
    screen: Annotated[
        str, typer.Option(help="Which heads are scored exactly: off, auto, or how many.")
    ] = "off",
    length: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a prompt in its template, where --prompts is a number: so many."
        ),
    ] = None,
    dtype: options.Dtype = "float32",
    size: Annotated[int, typer.Option(min=1, help="Heads that sahara is to choose.")] = 3,
    variants: Annotated[
        int, typer.Option(min=1, help="Variants of the model that evaluate asks, itself included.")
    ] = 22,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of an answer of evaluate; default: 128, or what fits."),
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, help="How many GPUs; 0: this CPU.")] = 0,
    memory: Annotated[str | None, typer.Option(help="Memory of each GPU, such as 80GiB.")] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="Floating point operations a second that a GPU reaches, such as 2e14; 'timed': "
            "load the model and try it here."
        ),
    ] = None,
) -> None:
    """Say what a run will take before it runs: pieces, passes, memory and hours, by the config."""
    found = sh.plan(
        model,
        int(prompts.prompts) if prompts.prompts.isdecimal() else prompts.load(),
        measure=measure,
        length=length,
        template=prompts.form,
        ablation=ablation.chosen(),
        size=size,
        screen=options.chosen_screen(screen),
        variants=variants,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        gpus=gpus,
        memory=memory,
        rate=_rate(rate),
        run=limits.chosen(),
    )
    output.draw(found.figure)
    output.write(found)
    table = Table(title=f"{model}: plan", show_header=False)
    for name, said in found.told().items():
        table.add_row(name, said)
    output.tell(table)


def _rate(text: str | None) -> float | Literal["timed"] | None:
    if text is None or text == "timed":
        return None if text is None else "timed"
    try:
        return float(text)
    except ValueError as error:
        raise SafeheadError(f"--rate {text}: give a number such as 2e14, or timed") from error
