"""The string around a prompt: `direct`, `paper`, `chat`, or any text with `{query}` in it."""

from __future__ import annotations

from safehead_tl._errors import SafeheadError

CHAT = "chat"
"""The name that stands for the tokenizer's own chat template."""

TEMPLATES = {
    "direct": "{query}",
    "paper": "## Query:{query}\n## Answer:",
}
"""Named templates. `paper` is the one that the paper's attribution code uses (its App. B.1)."""


def resolve_template(template: str) -> str:
    """Turns a template's name into its text; `"chat"` and written templates stay as they are.

    Raises:
        SafeheadError: if it is neither a known name nor a text with exactly one `{query}`.
    """
    if template == CHAT:
        return template
    text = TEMPLATES.get(template, template) if isinstance(template, str) else ""
    if text.count("{query}") != 1:
        names = ", ".join(repr(name) for name in [*TEMPLATES, CHAT])
        raise SafeheadError(
            f"template {template!r} is not known: use {names}, "
            "or a text in which {query} stands exactly once, like '## Query:{query}\\n## Answer:'"
        )
    return text


def fill(template: str, query: str) -> str:
    """Puts a query into a written template; braces inside the query are left alone."""
    return template.replace("{query}", query)
