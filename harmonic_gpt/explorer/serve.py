"""The explorer on this machine: the same page, and texts that are typed in it are read by both models.

What a request may do: get a file of the folder, or have one text of bounded length read, one at a time. Nothing that it
sends is executed, stored or written.
"""

import json
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from harmonic_gpt.errors import InputError
from harmonic_gpt.explorer.build import Explored, summary
from harmonic_gpt.explorer.format import to_json
from harmonic_gpt.explorer.passages import encode

MAX_CHARACTERS = 20_000  # of a text
MAX_BYTES = 8 * MAX_CHARACTERS  # of a request
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'"
BUSY = "busy with another text; try again in a moment"


def make_server(folder: Path, explored: Explored, host: str, port: int) -> ThreadingHTTPServer:
    """A server of an explorer's folder that waits for `serve_forever`. Raises InputError for an address that cannot be
    had.

    A browser may be led to send requests here from a page of someone else's (DNS rebinding, cross-site posts): the
    request must name this address as its host, and as its origin if it has one. Bound to more than loopback, the host's
    name is not known and not checked; the origin still is.
    """
    served = {"tokens": explored.context, "characters": MAX_CHARACTERS} if explored.can_read else None
    handler = partial(_Handler, reader=_one_at_a_time(explored), served=served, directory=str(folder))
    try:
        return ThreadingHTTPServer((host, port), handler)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot serve at {host}:{port}: {error}; choose another --host or --port") from error


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _one_at_a_time(explored: Explored) -> Callable[[str], dict | None]:
    """A function that reads a text with both models; None while it reads another one."""
    free = threading.Lock()

    def read(text: str) -> dict | None:
        if not free.acquire(blocking=False):
            return None
        try:
            loaded = explored.models[0]
            assert loaded.tokenizer is not None
            passage = encode(text, loaded.tokenizer, explored.context, "typed text")
            value = explored.read(passage)
            return {"summary": summary("typed", passage, value, loaded), "text": value}
        finally:
            free.release()

    return read


class _Handler(SimpleHTTPRequestHandler):
    server: ThreadingHTTPServer
    server_version, sys_version = "harmonic-gpt", ""

    def __init__(self, *arguments: Any, reader: Callable[[str], dict | None], served: dict | None, **named: Any):
        self.reader, self.served = reader, served
        super().__init__(*arguments, **named)

    def do_GET(self) -> None:
        if not self._asked_of_us():
            return
        if self.path.partition("?")[0] == "/data/serve.js":
            self._answer(HTTPStatus.OK, f'explorer.receive("serve",{to_json(self.served)})\n', "text/javascript")
            return
        super().do_GET()

    def do_HEAD(self) -> None:
        if self._asked_of_us():
            super().do_HEAD()

    def do_POST(self) -> None:
        if not self._asked_of_us():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/read" or self.served is None:
            self._refuse(HTTPStatus.NOT_FOUND, "only /read takes a text")
        elif self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        elif not length.isdigit() or int(length) > MAX_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected a text of at most {MAX_CHARACTERS} characters")
        else:
            self._read(self.rfile.read(int(length)))

    def _read(self, body: bytes) -> None:
        try:
            text = json.loads(body)["text"]
            if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
                raise ValueError("not a text, or too long")
        except (ValueError, KeyError, TypeError):
            self._refuse(HTTPStatus.BAD_REQUEST, f"expected a text of at most {MAX_CHARACTERS} characters")
            return
        try:
            value = self.reader(text)
        except InputError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        if value is None:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, BUSY)
            return
        self._answer(HTTPStatus.OK, to_json(value), "application/json")

    def _asked_of_us(self) -> bool:
        """Whether the request was meant for this server; it is refused here if not."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        bound, port = self.server.server_address[:2]
        known = {f"{name}:{port}" for name in (str(bound), "localhost", "127.0.0.1", "[::1]")}
        if (is_loopback(str(bound)) and host not in known) or (origin is not None and origin != f"http://{host}"):
            self._refuse(HTTPStatus.FORBIDDEN, "this server answers its own page alone")
            return False
        return True

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True  # the body may not have been read
        self._answer(status, json.dumps({"error": reason}), "application/json")

    def _answer(self, status: HTTPStatus, text: str, kind: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def list_directory(self, path: Any) -> None:  # noqa: ARG002  the base class's signature
        self._refuse(HTTPStatus.NOT_FOUND, "no such file")

    def log_message(self, *_: Any) -> None:
        pass
