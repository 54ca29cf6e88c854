"""Conversations as prompts: a system message, earlier turns, and the turn to be answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard

from safehead_tl.errors import SafeheadError

ROLES = ("system", "user", "assistant")


class Chat(str):
    """A conversation that stands where a prompt's text stands.

    As a text it is its messages one below the other, which is what tables show and judges are told.
    What the model reads is made of the messages, with `role` and `content`, by its chat template.
    """

    messages: tuple[dict[str, str], ...]

    def __new__(cls, messages: Iterable[Mapping[str, str]]) -> Chat:
        """Of messages that `as_chat` has checked."""
        told = tuple({"role": each["role"], "content": each["content"]} for each in messages)
        chat = super().__new__(cls, "\n\n".join(f"{one['role']}: {one['content']}" for one in told))
        chat.messages = told
        return chat

    def __getnewargs__(self) -> tuple[Any]:
        """What a copy is made of."""
        return (self.messages,)

    def mapped(self, change: Callable[[str], str]) -> Chat:
        """The same conversation with another content of each message."""
        return Chat({**each, "content": change(each["content"])} for each in self.messages)


def is_chat(prompt: Any) -> TypeGuard[Iterable[Mapping[str, str]]]:
    """Whether something is a list of messages."""
    return isinstance(prompt, list | tuple) and all(isinstance(one, Mapping) for one in prompt)


def as_chat(messages: Iterable[Mapping[str, str]], where: str) -> str:
    """A conversation, checked; one user's turn alone is a plain text.

    Raises:
        SafeheadError: naming `where`, for messages without role or content, an unknown role, a
            blank or system message out of place, or a last turn that is not the user's.
    """
    listed = list(messages)
    for number, message in enumerate(listed):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str) or not content.strip():
            raise SafeheadError(
                f"{where}: message {number} needs a 'role', one of {', '.join(ROLES)}, and a text "
                f"as 'content'; it is {dict(message)!r}"
            )
        if role == "system" and number:
            raise SafeheadError(f"{where}: a system message comes first, not as message {number}")
    if not listed or listed[-1]["role"] != "user":
        raise SafeheadError(
            f"{where}: a conversation ends with the user's turn, which is to be answered; what the "
            "answer is to begin with goes into Prefilled"
        )
    return listed[0]["content"] if len(listed) == 1 else Chat(listed)
