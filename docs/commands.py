"""Writes docs/commands.md, the reference of the command line, from the command itself.

python docs/commands.py   # a test compares the page with what this writes
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from safehead_tl.cli import app

QUOTE = "'"
PAGE = Path(__file__).parent / "commands.md"
HEAD = """# Command line

`safehead COMMAND --help` says the same as this page, which `python docs/commands.py` writes from
the command. The model comes first, by its name; options mean what arguments of the same name mean
in Python (`--via` is also `which` of `MeanOverHeads`).
`--json -` prints the result, and nothing else. What the user can mend is said in a sentence, with
exit status 2.
"""


def page() -> str:
    """The whole page."""
    group: Any = typer.main.get_command(app)
    commands = group.commands.items()
    lines = [HEAD, "| command | what it does |", "|---|---|"]
    lines += [f"| [`{name}`](#{name}) | {_cell(command.help)} |" for name, command in commands]
    for name, command in commands:
        lines += ["", f"## {name}", "", _text(command.help), "", *_usage(name, command)]
    return "\n".join(lines) + "\n"


def _usage(name: str, command: Any) -> list[str]:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    named = [each.metavar or each.name.upper() for each in arguments]
    lines = [f"`{' '.join(['safehead', name, *named, '[OPTIONS]'])}`", ""]
    lines += [
        f"- `{each}`: {_text(told.help)}" for each, told in zip(named, arguments, strict=True)
    ]
    lines += [""] if arguments else []
    lines += ["| option | default | what it is |", "|---|---|---|"]
    return lines + [_row(each) for each in options]


def _row(option: Any) -> str:
    names = " / ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    default = option.default
    if option.required:
        shown = "required"
    elif isinstance(default, bool):
        shown = "yes" if default else "no"
    elif default in (None, "", []) or repr(default).startswith("Sentinel"):
        shown = ""
    else:
        shown = f"`{default}`"
    return f"| {names} | {shown} | {_cell(getattr(option, 'help', ''))} |"


def _cell(text: str | None) -> str:
    return _text(text).replace("|", r"\|")


def _text(text: str | None) -> str:
    """Help as Markdown: options, and what is in quotes or braces, are code."""
    plain = re.sub(r"\s+", " ", text or "").strip()
    code = r"(?<![\w`])(--[a-z][a-z-]*|'[^']+'|\{\w+\})"
    return re.sub(code, lambda found: f"`{found[0].strip(QUOTE)}`", plain)


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
