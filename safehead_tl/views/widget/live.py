"""The widget's page without a notebook: served on this machine, to whoever has its address."""

from __future__ import annotations

import html
import json
import re
import secrets
import select
import sys
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from typing_extensions import override

from safehead_tl.errors import SafeheadError
from safehead_tl.figures import filled, in_script, policy_hash, web_text
from safehead_tl.views.page.report import SCRIPTS, STYLES
from safehead_tl.views.widget.state import Explorer

HOST = "127.0.0.1"
POLICY = (
    "default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class LivePage(ThreadingHTTPServer):
    """One page, at an address that cannot be guessed; `show`, then `serve_forever`.

    Args:
        port: where to listen; 0: wherever is free.

    Raises:
        SafeheadError: if the port cannot be had.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise SafeheadError(
                f"port {port} cannot be listened on ({error.strerror}): give another, or none"
            ) from error
        self.site = f"{HOST}:{self.server_port}"
        self.path = f"/{secrets.token_urlsafe(16)}/"
        self.turn = Lock()
        """Held while the model runs."""

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{self.site}{self.path}"

    def show(self, explorer: Explorer, shown: Mapping[str, Any]) -> None:
        """Takes what the page asks, and what it opens with; what was seen last replaces that."""
        self.explorer, self.page = explorer, explorer.page()
        self.seen: tuple[Mapping[str, Any], Mapping[str, Any]] = explorer.first, shown

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a tab that was closed is none
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Every visit of the page, and every request from it."""

    server: LivePage
    timeout = 30  # seconds that a connection may keep silent
    server_version, sys_version = "safehead_tl", ""

    @override
    def parse_request(self) -> bool:
        """Refuses, by whatever method, all that is not of the page's own address.

        The host tells whether a foreign name was made to lead here, the origin whether another
        site's page asks.
        """
        if not super().parse_request():
            return False
        site = self.server.site
        origins = self.headers.get_all("Origin", [] if self.command == "POST" else [None])
        ours = (
            secrets.compare_digest(self.path.encode(), self.server.path.encode())
            and self.headers.get_all("Host") == [site]
            and origins in ([f"http://{site}"], [None])
        )
        if not ours:
            self.send_error(403, explain="Open the whole address that the command prints")
        return ours

    def do_GET(self) -> None:
        """The page, with what was seen last in whichever tab."""
        asked, shown = self.server.seen
        name = Path(str(self.server.explorer.scores.provenance.model["name"])).name
        state = {
            "page": self.server.page,
            "asked": {**asked, "number": 0},
            "shown": {**shown, "number": 0},
        }
        style = web_text(*STYLES, "report.css", "explore.css")
        script = web_text(*SCRIPTS, "explore.js", "live.js")
        parts = {
            "title": html.escape(f"Attention heads of {name}, live"),
            "style": style,
            "script": script,
            "data": in_script(json.dumps(state)),
        }
        policy = POLICY.format(script=policy_hash(script), style=policy_hash(style))
        self._send("text/html; charset=utf-8", filled("live.html", parts), policy)

    def do_POST(self) -> None:
        """What is asked for, unless nobody waits for it any more when its turn comes."""
        size = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,6}", size):
            self.send_error(413)
            return
        try:
            asked = json.loads(self.rfile.read(int(size)))
        except (ValueError, RecursionError):
            self.send_error(400)
            return
        with self.server.turn:
            if select.select([self.connection], [], [], 0)[0]:  # closed: it sends no more
                return
            shown = self.server.explorer.answer(asked)
            if "error" not in shown:
                self.server.seen = asked, shown
        self._send("application/json", json.dumps(shown))

    def _send(self, kind: str, text: str, policy: str = "default-src 'none'") -> None:
        body = text.encode()
        self.send_response(200)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    @override
    def log_message(self, *told: Any) -> None:
        """Says nothing: the address is a secret."""
