"""A server of an OpenAI-compatible API in this process, which answers as a test tells it to."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class PretendApi(ThreadingHTTPServer):
    """Answers by a function of a request's body and number; keeps what it was sent.

    The function gives a status and an answer, and perhaps headers; without them failures are to be
    tried again at once. `listed` is what it says of its models; `None`: it fails to.
    """

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.listed = None
        self.requests = []
        self.lock = threading.Lock()
        self.busy = self.busiest = 0

    def handle_error(self, request, client_address):
        """A client that has gone away is part of the tests."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def bodies(self):
        return [body for _, _, body in self.requests]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        listed = self.server.listed
        self.say(500 if listed is None else 200, {"object": "list", "data": listed}, {})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, self.headers["Authorization"], body))
            number = len(self.server.requests)
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
        status, answer, *headers = self.server.answer(body, number)
        with self.server.lock:
            self.server.busy -= 1
        self.say(status, answer, *(headers or [{"Retry-After-Ms": "1"}]))

    def say(self, status, answer, headers):
        payload = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments):
        pass
