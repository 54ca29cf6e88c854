"""What pages are made of: files that a browser reads, put together under a strict policy."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files

FOLDER = files("safehead_tl") / "data" / "web"


def web_text(*names: str) -> str:
    """Files of the package that a browser reads, one after another."""
    return "\n".join((FOLDER / name).read_text("utf-8") for name in names)


def policy_hash(text: str) -> str:
    """What lets a script or style into a page with a content policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def web_page(styles: Sequence[str], scripts: Sequence[str]) -> dict[str, str]:
    """The parts of a page that are its style and script, with what lets them in."""
    style, script = web_text(*styles), web_text(*scripts)
    return {
        "style": style,
        "script": script,
        "style_hash": policy_hash(style),
        "script_hash": policy_hash(script),
    }


def in_script(json: str) -> str:
    """JSON that can stand in a script element, which only < can end."""
    return json.replace("<", "\\u003c")  # U+2028 and U+2029 are plain JSON


def filled(name: str, parts: Mapping[str, str]) -> str:
    """A page with its parts put where `{{their name}}` stands."""
    pieces = web_text(name).split("{{")
    page = [pieces[0]]
    for piece in pieces[1:]:  # one pass: what is put in is never looked at again
        place, _, rest = piece.partition("}}")
        page += [parts[place], rest]
    return "".join(page)
