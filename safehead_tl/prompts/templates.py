"""The string around a prompt: the model's own, a named one, or any text with `{query}` in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase

from safehead_tl.errors import SafeheadError
from safehead_tl.models import write_chat
from safehead_tl.prompts.chats import Chat

AUTO = "auto"
"""The name that stands for what a model expects: its own chat template, or else the paper's."""

CHAT = "chat"
"""The name that stands for the tokenizer's own chat template."""

TEMPLATES = {
    "direct": "{query}",
    "paper": "## Query:{query}\n## Answer:",
}
"""Named templates. `paper` is the one that the paper's attribution code uses (its App. B.1)."""


@dataclass(frozen=True)
class ChatTemplate:
    """The tokenizer's own chat template, with its generation prompt; `"chat"` for short.

    What it writes is what the model gets: a BOS token only if the chat template has one, as in
    Transformers' `apply_chat_template`.

    Attributes:
        system: a system prompt in front of each query; `None`: what the template puts there by
            itself, if anything.

    Example:
        >>> tokenizer = sh.load_model("demo").tokenizer
        >>> sh.ChatTemplate().fill(tokenizer, "how do i bend a kite")
        '<s>## query : how do i bend a kite ## answer :'
    """

    system: str | None = None

    def fill(self, tokenizer: PreTrainedTokenizerBase, query: str) -> str:
        """The conversation as text, up to where the answer begins.

        Raises:
            SafeheadError: if there is no chat template, or it drops or refuses a message.
        """
        if not tokenizer.chat_template:
            raise SafeheadError(
                "this model's tokenizer has no chat template: use template='paper' or 'direct', "
                "or write the model's own format as a text with {query}"
            )
        messages = [{"role": "user", "content": query}]
        if isinstance(query, Chat):
            messages = list(query.messages)
        if self.system is not None:
            if messages[0]["role"] == "system":
                raise SafeheadError(
                    "a conversation has a system message of its own: leave out the template's"
                )
            messages.insert(0, {"role": "system", "content": self.system})
        text = write_chat(tokenizer, messages)
        for message in messages:
            if message["content"].strip() not in text:
                raise SafeheadError(
                    f"the chat template drops the {message['role']} message: write the model's "
                    "own format as a text with {query}, or put it into the query"
                )
        return text


@dataclass(frozen=True)
class Prefilled:
    """A template behind which every answer begins with a given text (paper App. E).

    The text is the model's own beginning: scans read the token behind it, and texts go on from it.
    It is encoded by itself, and put behind the prompt's tokens, as it would be if the model had
    written it: no token is made of the prompt's end and its beginning. Where the model would begin
    with a space, write one: `" Sure"`. What `generate` gives and judges see is only what the model
    wrote, without it.

    Attributes:
        text: what each answer begins with.
        template: as in `ships`.

    Example:
        >>> model = sh.load_model("demo")
        >>> asked = sh.Prefilled("bend the")
        >>> sh.generate(model, ["how do i bend a kite"], template=asked, max_new_tokens=3).texts
        (('kite with a',),)
    """

    text: str
    template: str | ChatTemplate = "auto"


Template: TypeAlias = str | ChatTemplate | Prefilled


def own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template that `auto` means: `chat` where the tokenizer has one, elsewhere `paper`."""
    return CHAT if tokenizer.chat_template else "paper"


def resolve_template(template: str | ChatTemplate) -> str | ChatTemplate:
    """Turns a template's name into what it stands for; a written template stays as it is.

    Raises:
        SafeheadError: if it is neither a known name nor a text with exactly one `{query}`.
    """
    if isinstance(template, ChatTemplate):
        return template
    if template == CHAT:
        return ChatTemplate()
    text = TEMPLATES.get(template, template) if isinstance(template, str) else ""
    if text.count("{query}") != 1:
        names = ", ".join(repr(name) for name in [AUTO, *TEMPLATES, CHAT])
        raise SafeheadError(
            f"template {template!r} is not known: use {names}, "
            "or a text in which {query} stands exactly once, like '## Query:{query}\\n## Answer:'"
        )
    return text


def describe_template(template: Template) -> dict[str, Any]:
    """Its name or text, its system prompt and its answers' beginning, for a result's provenance."""
    if isinstance(template, Prefilled):
        return {**describe_template(template.template), "prefix": template.text}
    if isinstance(template, ChatTemplate):
        return {"template": CHAT, "system": template.system, "prefix": None}
    return {"template": template, "system": None, "prefix": None}


def fill(template: str | ChatTemplate, tokenizer: PreTrainedTokenizerBase, query: str) -> str:
    """Puts a query into a resolved template; braces inside the query are left alone."""
    if isinstance(template, ChatTemplate):
        return template.fill(tokenizer, query)
    if isinstance(query, Chat):
        raise SafeheadError(
            f"template {template!r} has no place for a conversation: use template='chat', with a "
            "model whose tokenizer has a chat template"
        )
    return template.replace("{query}", query)
