"""The served widget as others on the machine, other sites' pages and impatient tabs meet it."""

import http.client
import json
import re
import threading
from contextlib import closing

import pytest

import safehead_tl as sh
from families import QUIET
from safehead_tl.figures import policy_hash
from safehead_tl.views import LivePage
from safehead_tl.views.widget.state import Explorer


@pytest.fixture(scope="module")
def view(demo, harmful):
    return sh.explore(demo, harmful[:2], max_new_tokens=0, run=QUIET)


@pytest.fixture(scope="module")
def page(view):
    with LivePage(0) as page:
        page.show(view.explorer, view.shown)
        thread = threading.Thread(target=page.serve_forever, args=[0.05])
        thread.start()
        yield page
        page.shutdown()
        thread.join()


def ask(page, method, path=None, body=None, **headers):
    """Status, headers and text of an answer; a header that is given replaces a browser's."""
    told = {"Host": page.site, **({"Origin": f"http://{page.site}"} if method == "POST" else {})}
    with closing(http.client.HTTPConnection("127.0.0.1", page.server_port, timeout=20)) as line:
        line.putrequest(method, path or page.path, skip_host=True, skip_accept_encoding=True)
        size = {} if body is None else {"Content-Length": len(body)}
        for name, value in {**told, **size, **headers}.items():
            if value is not None:
                line.putheader(name, str(value))
        line.endheaders(body)
        answer = line.getresponse()
        return answer.status, answer.headers, answer.read().decode()


def test_the_page_lets_in_its_own_script_alone(page, view):
    status, headers, text = ask(page, "GET")
    assert status == 200
    policy = headers["Content-Security-Policy"]
    for kind in ("script", "style"):
        inside = re.search(rf"<{kind}(?: type=\"module\")?>(.*?)</{kind}>", text, re.S)[1]
        assert f"{kind}-src '{policy_hash(inside)}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert (headers["Referrer-Policy"], headers["Cache-Control"]) == ("no-referrer", "no-store")
    state = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert state["shown"] == {**json.loads(json.dumps(view.shown)), "number": 0}
    assert ask(page, "GET", Origin=f"http://{page.site}")[0] == 200


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PUT"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"path": "/"},
        {"path": "/favicon.ico"},
        {"path": "/AAAAAAAAAAAAAAAAAAAAAA/"},
        {"path": "PATH\xe9"},
        {"path": "PATH../"},
        {"path": "PATH?"},
        {"Host": "evil.example"},
        {"Host": "localhost:PORT"},
        {"Host": "127.0.0.1"},
        {"Host": None},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
    ],
)
def test_all_else_is_refused(page, method, wrong, monkeypatch):
    monkeypatch.setattr(
        http.client.HTTPConnection, "_encode_request", lambda _, text: text.encode("latin-1")
    )
    told = {
        name: value and value.replace("PATH", page.path).replace("PORT", str(page.server_port))
        for name, value in wrong.items()
    }
    status, _, text = ask(page, method, body=b"{}", **told)
    assert status == 403
    assert page.path not in text


def test_a_request_without_an_origin_is_refused(page, view):
    asked = json.dumps(view.explorer.first).encode()
    assert ask(page, "POST", body=asked, Origin=None)[0] == 403
    assert ask(page, "POST", body=asked)[0] == 200


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"\xff", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"", {}, 400),
        (b"{}", {"Content-Length": "-1"}, 413),
        (b"{}", {"Content-Length": "1000000"}, 413),
        (b"{}", {"Content-Length": "9" * 5000}, 413),
        (None, {}, 413),
    ],
)
def test_what_is_no_request_is_refused(page, body, headers, status):
    assert ask(page, "POST", body=body, **headers)[0] == status


def test_a_mistake_is_answered_and_not_kept(page, view):
    before = page.seen
    status, headers, text = ask(page, "POST", body=b'{"columns": 3}')
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(text)["error"].startswith("This cannot be shown")
    assert page.seen is before
    first = view.explorer.first
    asked = {**first, "columns": first["columns"][1:], "shown": ["L0H0"]}
    answer = json.loads(ask(page, "POST", body=json.dumps(asked).encode())[2])
    assert answer == json.loads(json.dumps(view.explorer.answer(asked)))
    assert '"shown": ["L0H0"]' in ask(page, "GET")[2]  # what another tab opens with


def test_one_at_a_time_and_nothing_for_who_has_left(page, monkeypatch):
    began, go, worked = threading.Semaphore(0), threading.Semaphore(0), []

    def answer(_, asked):
        worked.append(asked)
        began.release()
        assert go.acquire(timeout=20)
        return {"error": "made up"}

    def post(number):
        line = http.client.HTTPConnection("127.0.0.1", page.server_port, timeout=20)
        line.request("POST", page.path, str(number), {"Origin": f"http://{page.site}"})
        return line

    monkeypatch.setattr(Explorer, "answer", answer)
    lines = [post(0)]
    assert began.acquire(timeout=20)
    lines += [post(1), post(2)]
    lines[1].close()
    assert not began.acquire(timeout=0.3)  # they wait
    go.release(2)
    answers = [json.loads(lines[number].getresponse().read()) for number in (0, 2)]
    lines[0].close()
    lines[2].close()
    assert answers == [{"error": "made up"}] * 2
    assert worked == [0, 2]
