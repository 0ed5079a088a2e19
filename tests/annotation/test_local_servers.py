"""What is said of servers at the usual addresses of this machine, over real sockets."""

import asyncio
import re
import shlex
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from megapairs_hf.annotation import DescribeConfig, Endpoint
from megapairs_hf.annotation.client import local_servers
from megapairs_hf.annotation.client.local_servers import find_local_servers
from megapairs_hf.annotation.client.transport import reach
from megapairs_hf.cli import main
from megapairs_hf.cli.commands import STAGES
from megapairs_hf.cli.flags import Parser
from megapairs_hf.core.errors import ConfigError, ServerUnavailableError
from tests.annotation.double import ChatDouble

JSON = "application/json"


class Scripted(ThreadingHTTPServer):
    """Answers every GET in one way, and remembers what it was asked for."""

    daemon_threads = True

    def __init__(self, status=200, content=b"", kind=JSON, headers=(), hang=False, drip=False):
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.answer, self.hang, self.drip = (status, content, kind, headers), hang, drip
        self.asked, self.gone = [], threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def close(self):
        self.gone.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        pass


class ScriptedHandler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, dict(self.headers)))
        if server.hang:
            server.gone.wait(30)
            return
        status, content, kind, headers = server.answer
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if not server.drip:
            self.wfile.write(content)
            return
        while not server.gone.wait(0.05):
            self.wfile.write(b" ")
            self.wfile.flush()


@pytest.fixture
def serve(monkeypatch):
    """Servers that stand at the usual addresses, in their order."""
    servers = []

    def start(*made):
        servers.extend(made)
        addresses = tuple((f"program {n}", server.url) for n, server in enumerate(made))
        monkeypatch.setattr(local_servers, "ADDRESSES", addresses)
        return made

    yield start
    for server in servers:
        server.close()


def found(timeout_s=2.0):
    return asyncio.run(find_local_servers(timeout_s))


def test_the_usual_addresses_are_all_of_this_machine_and_each_once():
    urls = [url for _, url in local_servers.ADDRESSES]
    assert len(set(urls)) == len(urls)
    assert all(re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", url) for url in urls)
    assert {int(url.split(":")[2].split("/")[0]) for url in urls} == {8080, 8000, 3000, 11434, 30000, 1234}


@pytest.mark.parametrize(
    ("answer", "models"),
    [
        ({"object": "list", "data": [{"id": "llava:7b"}, {"id": "qwen2.5vl"}]}, ("llava:7b", "qwen2.5vl")),
        # llama.cpp has both lists
        ({"models": [{"name": "a.gguf"}], "data": [{"id": "/m/a.gguf"}]}, ("/m/a.gguf",)),
        ({"models": [{"name": "only"}]}, ("only",)),
    ],
)
def test_models_are_named_with_the_flags_that_use_them(answer, models, serve):
    (server,) = serve(ChatDouble(models=answer))
    (one,) = found()
    assert (one.models, one.problem) == (models, "")
    parser = Parser("megapairs describe")
    options = STAGES["describe"].add_flags(parser)
    # the flags are those of the command
    words = shlex.split(one.flags())
    assert words == ["--model", models[0], "--endpoint.urls", server.url]
    assert options is not None and vars(parser.parse_args(words))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"hang": True}, "gives no answer within 0.5 s"),
        ({"drip": True}, "gives no answer within 0.5 s"),
        ({"content": b"<html><title>Jupyter</title></html>", "kind": "text/html"}, "is no server for models"),
        ({"content": b"\xff\xfe\x00"}, "is no server for models"),
        ({"content": b"[" * 100_000}, "is no server for models"),
        ({"content": b'{"data": [' + b'{"id": "m"},' * 500_000 + b'{"id": "m"}]}'}, "is no server for models"),
        ({"content": b'{"object": "list", "data": null}'}, "serves no model yet"),
        ({"content": b'{"data": [{"id": 7}, null, "", {"id": ""}]}'}, "serves no model yet"),
        ({"status": 404, "content": b"gone"}, "is no server for models (HTTP 404)"),
        ({"status": 500, "content": b"oh"}, "is no server for models (HTTP 500)"),
        ({"status": 401, "content": b"{}"}, "wants a token; put it into a variable and name that with"),
    ],
)
def test_what_is_no_server_for_models_is_said_and_the_next_one_is_named(settings, problem, serve):
    serve(Scripted(**settings), ChatDouble(models=["m"]))
    start = time.monotonic()
    first, second = found(0.5)
    assert first.problem.startswith(problem) and not first.models
    assert second.models == ("m",)
    # far below the 30 s that the first hangs
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(status, serve):
    elsewhere = ChatDouble(models=["stolen"])
    try:
        location = elsewhere.url.replace("127.0.0.1", "localhost") + "/models"
        (server,) = serve(Scripted(status, headers=[("Location", location)]))
        (one,) = found()
        assert one.problem == f"answers HTTP {status}, which is not followed" and not one.models
        assert len(server.asked) == 1 and elsewhere.looks == 0
    finally:
        elsewhere.close()


def test_no_token_is_sent_and_no_proxy_is_taken(serve, monkeypatch):
    proxy = Scripted(content=b'{"data": [{"id": "of the proxy"}]}')
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    try:
        (server,) = serve(Scripted(content=b'{"data": [{"id": "m"}]}'))
        assert [one.models for one in found()] == [("m",)]
        ((path, headers),) = server.asked
        assert path == "/v1/models" and "hf_secret" not in str(headers) and "authorization" not in str(headers).lower()
        assert proxy.asked == []
    finally:
        proxy.close()


def test_names_are_escaped_for_terminal_and_shell(serve, monkeypatch, capsys):
    serve(ChatDouble(models=["m\x1b[31m'; rm -rf ~ #"]))
    assert main(["env", "--servers"]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    line = next(line for line in text.splitlines() if line.startswith("megapairs describe"))
    assert shlex.split(line)[3] == "m?[31m'; rm -rf ~ #"


def test_the_command_says_how_to_use_what_answers(serve, capsys):
    one, two = serve(Scripted(content=b"<html>"), ChatDouble(models=[f"m{n}" for n in range(7)]))
    assert main(["env", "--servers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{one.url} (usually program 0): is no server for models"
    assert lines[1] == f"{two.url} (usually program 1): m0, m1, m2, m3, m4, and 2 more"
    assert f"megapairs describe --model m0 --endpoint.urls {two.url}" in lines
    assert "need a model that sees images" in lines[-1]


def test_the_command_says_when_nothing_answers(monkeypatch, capsys):
    monkeypatch.setattr(local_servers, "ADDRESSES", (("nobody", f"http://127.0.0.1:{unused_port()}/v1"),))
    assert main(["env", "--servers"]) == 0
    assert "no server of models answers on this machine" in capsys.readouterr().out


def unused_port():
    server = Scripted()
    port = server.server_port
    server.close()
    return port


def test_the_error_that_nothing_answers_names_what_does(serve):
    (server,) = serve(ChatDouble(models=["llava:7b"]))
    port = unused_port()
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(ServerUnavailableError) as caught:
            asyncio.run(reach(f"http://{host}:{port}/v1", 2.0))
        assert str(caught.value).endswith(
            f"or use what answers on this machine: --model llava:7b --endpoint.urls {server.url}"
        )
    # who names another machine wants that one
    with pytest.raises(ServerUnavailableError) as caught:
        asyncio.run(reach(f"http://127.0.0.2:{port}/v1", 2.0))
    assert "on this machine" not in str(caught.value)
    assert server.looks == 2


def test_eval_names_what_answers_in_its_own_flags(serve, tmp_path, capsys):
    (server,) = serve(ChatDouble(models=["qwen"]))
    words = ["eval", "M", "circo", "--data", str(tmp_path), "--out", str(tmp_path), "--vlm", "qwen"]
    assert main(words) == 1
    assert f"--vlm qwen --vlm-urls {server.url}, which answers on this machine" in capsys.readouterr().err


def test_the_default_address_is_among_the_usual_ones():
    assert set(Endpoint().urls) <= {url for _, url in local_servers.ADDRESSES}
    assert DescribeConfig().endpoint == Endpoint()
    with pytest.raises(ConfigError, match="one or more addresses"):
        Endpoint(urls=())
