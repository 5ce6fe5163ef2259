"""The plan explorer's server: one page and its numbers, on this machine alone.

Room: report. Standard library for the network: `http.server` on the loopback interface.
"""

import json
import secrets
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from markupsafe import Markup

from reticent.errors import ReticentError
from reticent.report._explore import KNOBS, explore, in_words
from reticent.report._templates import page, part

_HOST: Final = "127.0.0.1"
_LONGEST_QUERY: Final = 1000


class Explorer:
    """A server of the plan explorer.

    Args:
        start: where the knobs stand at first: name -> value.

    Attributes:
        url: what to open: a random port, and a random token that every request must name.

    Guarantee:
        Listens on 127.0.0.1 only, answers GET only, and only under the token and with this machine's own name
        in the request, so that no other site's page can reach it. Reads and writes no file of the user's. The
        page loads nothing from anywhere else, which its content policy makes the browser enforce.
    """

    def __init__(self, start: Mapping[str, float]) -> None:
        self._start = dict(start)
        self._token = secrets.token_urlsafe(24)
        self._newest, self._counting, self._computing = 0, threading.Lock(), threading.Lock()
        self._known: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
        self._server = ThreadingHTTPServer((_HOST, 0), _handler(self))
        self._server.daemon_threads = True
        self.url: Final = f"http://{_HOST}:{self._server.server_port}/{self._token}/"

    def serve(self) -> None:
        """Answer until interrupted, or until `close` is called from another thread; then the port is free."""
        try:
            self._server.serve_forever()
        finally:
            self._server.server_close()

    def close(self) -> None:
        """End `serve`, which runs in another thread."""
        self._server.shutdown()

    def answer(self, host: str | None, target: str) -> tuple[HTTPStatus, str, str, str]:
        """Status, content type, content policy and body for one GET."""
        port = self._server.server_port
        try:
            parts = urlsplit(target)
        except ValueError:  # an address that is none
            return HTTPStatus.BAD_REQUEST, "text/plain", _NOTHING, "This is no address."
        named, _, what = parts.path.removeprefix("/").partition("/")
        allowed = host in (f"{_HOST}:{port}", f"localhost:{port}")
        if not allowed or not secrets.compare_digest(named.encode(), self._token.encode()):
            return HTTPStatus.FORBIDDEN, "text/plain", _NOTHING, "Open the address that the command printed."
        if what == "":
            nonce = secrets.token_urlsafe(16)
            return HTTPStatus.OK, "text/html", _POLICY.format(nonce=nonce), self._page(nonce)
        if what == "plan" and len(parts.query) <= _LONGEST_QUERY:
            return HTTPStatus.OK, "application/json", _NOTHING, json.dumps(self._plan(parts.query))
        return HTTPStatus.NOT_FOUND, "text/plain", _NOTHING, "There is nothing here."

    def _page(self, nonce: str) -> str:
        return page(
            "explore.html.j2",
            knobs=KNOBS,
            start=self._start,
            nonce=nonce,
            script=Markup(part("explore.js")),
        )

    def _plan(self, query: str) -> dict[str, Any]:
        """The numbers; of several requests that wait, only the newest is computed."""
        given = dict(parse_qsl(query, keep_blank_values=True))
        key = tuple(sorted(given.items()))
        if key in self._known:
            return self._known[key]
        with self._counting:
            self._newest += 1
            mine = self._newest
        with self._computing:
            if mine != self._newest:
                return {"superseded": True}
            try:
                found = explore(given).to_dict()
            except ReticentError as error:
                found = {"error": in_words(error)}
            if len(self._known) < 500:
                self._known[key] = found
            return found


_NOTHING: Final = "default-src 'none'; frame-ancestors 'none'"
_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def _handler(explorer: Explorer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """GET only: the base class answers 501 to everything else."""

        server_version, sys_version = "reticent", ""

        def do_GET(self) -> None:
            status, kind, policy, body = explorer.answer(self.headers.get("Host"), self.path)
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Security-Policy", policy)
            self.send_header("Cache-Control", "no-store")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: the token is in every address."""

    return Handler
