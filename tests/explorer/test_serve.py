"""The local server: it answers its own page, one text at a time."""

import http.client
import json
import threading

import pytest

from harmonic_gpt.errors import InputError
from harmonic_gpt.explorer.passages import nats
from harmonic_gpt.explorer.serve import MAX_CHARACTERS, is_loopback, make_server
from tests.explorer.written import unpacked

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def served(built):
    folder, explored = built
    server = make_server(folder, explored, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(served):
    """A function that sends a request: (status, body)."""

    def send(method: str, path: str, body: str | None = None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", served.server_address[1], timeout=30)
        connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    return send


def post(ask, text, **headers):
    status, body = ask("POST", "/read", json.dumps({"text": text}), **({"Content-Type": "application/json"} | headers))
    return status, json.loads(body)


def test_the_page_and_a_typed_text(ask, built):
    assert ask("GET", "/")[0] == 200
    assert '"tokens":64' in ask("GET", "/data/serve.js")[1]
    status, value = post(ask, "The cat sees the dog.")
    assert status == 200
    ids = unpacked(value["text"]["ids"]).astype("int64")
    for loaded, mean in zip(built[1].models, value["summary"]["nats"], strict=True):
        assert mean == pytest.approx(float(nats(loaded.model, ids).mean()), rel=1e-5)


def test_a_long_text_is_cut_and_says_so(ask):
    status, value = post(ask, "The cat sees the dog. " * 50)
    assert status == 200
    assert "only the first 64" in value["text"]["note"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ('{"text": ""}', {}, 400),
        ('{"text": "a"}', {}, 400),
        ('{"text": 3}', {}, 400),
        ("[]", {}, 400),
        ("no json", {}, 400),
        (json.dumps({"text": "a " * MAX_CHARACTERS}), {}, 400),
        ("x" * (8 * MAX_CHARACTERS + 1), {}, 413),
        ('{"text": "The cat"}', {"Content-Type": "text/plain"}, 415),
        ('{"text": "The cat"}', {"Origin": "http://elsewhere.example"}, 403),
        ('{"text": "The cat"}', {"Host": "elsewhere.example"}, 403),
    ],
)
def test_what_is_refused(ask, body, headers, status):
    code, text = ask("POST", "/read", body, **(JSON | headers))
    assert code == status
    assert json.loads(text)["error"]


def test_only_its_own_files(ask):
    assert ask("GET", "/", Host="elsewhere.example")[0] == 403
    for path in ("/../conftest.py", "/%2e%2e/%2e%2e/etc/passwd", "/data/", "/nothing"):
        assert ask("GET", path)[0] == 404
    assert ask("POST", "/elsewhere", "{}", **JSON)[0] == 404
    assert ask("PUT", "/read", "{}", **JSON)[0] == 501


def test_one_text_at_a_time(ask, built, monkeypatch):
    reading, go_on = threading.Event(), threading.Event()
    read = type(built[1]).read

    def slow(self, passage):
        reading.set()
        assert go_on.wait(30)
        return read(self, passage)

    monkeypatch.setattr(type(built[1]), "read", slow)
    answers = []
    first = threading.Thread(target=lambda: answers.append(post(ask, "The cat sees.")))
    first.start()
    assert reading.wait(30)
    status, value = post(ask, "The dog sees.")
    go_on.set()
    first.join()
    assert (status, value) == (503, {"error": "busy with another text; try again in a moment"})
    assert answers[0][0] == 200


def test_addresses(built, served):
    assert is_loopback("127.0.0.1")
    assert is_loopback("localhost")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    with pytest.raises(InputError, match="another --host or --port"):
        make_server(*built, "127.0.0.1", served.server_address[1])
