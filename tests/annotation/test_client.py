import asyncio
import datetime
import threading

import pytest

from megapairs_hf.annotation.client import concurrency_limit
from megapairs_hf.annotation.client.budget import Usage
from megapairs_hf.annotation.client.client import Client
from megapairs_hf.annotation.client.endpoint import Endpoint
from megapairs_hf.annotation.client.messages import Request
from megapairs_hf.annotation.client.transport import retry_after
from megapairs_hf.core.errors import ConfigError, ServerUnavailableError
from tests.small import reserve

# longer than any machine takes to answer: what these tests count must not depend on how fast it is
NEVER_S = 600.0


def question(seed=1):
    return Request([{"role": "user", "content": "hello"}], "double", {"seed": seed, "max_tokens": 5})


def ask(server, count=1, usage=None, **settings):
    settings = {"urls": (server.url,), "backoff_s": 0.01, "timeout_s": NEVER_S, "restart_s": NEVER_S, **settings}

    async def all_of_them():
        async with Client(Endpoint(**settings), usage or Usage(), "double") as client:
            return await asyncio.gather(*(client.request(lambda n=n: question(n)) for n in range(count)))

    return asyncio.run(all_of_them())


def plain(body):
    return f"reply {body['seed']}"


@pytest.mark.parametrize(
    "fault",
    [
        ("status", 429),
        ("status", 500),
        ("status", 502),
        ("status", 503),
        ("truncated",),
        ("reset",),
        ("html",),
        ("empty",),
    ],
    ids=lambda fault: "-".join(map(str, fault)),
)
def test_a_failure_that_passes_is_asked_again(serve, fault):
    server = serve(answer=plain, script=lambda _, n: fault if n <= 2 else None)
    usage = Usage()
    replies = ask(server, 3, usage)
    assert [reply.text for reply in replies] == ["reply 0", "reply 1", "reply 2"]
    assert [replies[0].finish_reason, replies[0].prompt_tokens, replies[0].completion_tokens] == ["stop", 11, 7]
    assert set(server.asked.values()) == {3}
    assert usage.retried == 6


def test_a_server_that_does_not_answer_in_time_is_asked_again(serve):
    server = serve(answer=plain, script=lambda _, n: ("hang",) if n <= 2 else None)
    usage = Usage()
    # a busy machine may miss the time-out with good answers too: they are asked for again like the others
    replies = ask(server, 3, usage, timeout_s=0.5, max_retries=1000, max_backoff_s=0.1)
    assert [reply.text for reply in replies] == ["reply 0", "reply 1", "reply 2"]
    assert all(count >= 3 for count in server.asked.values())
    assert usage.retried == len(server.bodies) - 3 >= 6
    assert usage.completed == 3


def test_retry_after_is_honored(serve):
    server = serve(answer=plain, script=lambda _, n: ("status", 429, {"Retry_After": "0.7"}) if n == 1 else None)
    ask(server)
    assert server.times[1] - server.times[0] >= 0.7


def test_retry_after_forms(monkeypatch):
    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, zone=None):
            return cls(2025, 11, 28, 12, 0, 0, tzinfo=zone)

    monkeypatch.setattr(datetime, "datetime", Stopped)
    assert retry_after("3") == 3.0
    assert retry_after("Fri, 28 Nov 2025 12:00:10 GMT") == 10.0
    assert retry_after("Fri, 28 Nov 2025 11:00:00 GMT") == 0.0
    assert retry_after("soon") is None
    assert retry_after("") is None


@pytest.mark.parametrize(
    ("status", "advice"), [(403, "may not use this model"), (404, "no model 'double'"), (402, "no credit")]
)
def test_what_no_retry_helps_stops_at_once(serve, status, advice):
    server = serve(answer=plain, script=lambda *_: ("status", status))
    with pytest.raises(ServerUnavailableError, match=advice):
        ask(server)
    assert len(server.bodies) == 1


def test_the_token_comes_from_the_environment_and_is_never_told(serve, monkeypatch):
    server = serve(answer=plain, token="hf_right")
    monkeypatch.setenv("MY_TOKEN", "hf_right")
    assert ask(server, token_env="MY_TOKEN")[0].text == "reply 0"
    monkeypatch.setenv("MY_TOKEN", "hf_secret_wrong")
    with pytest.raises(ServerUnavailableError) as error:
        ask(server, token_env="MY_TOKEN")
    assert "MY_TOKEN" in str(error.value)
    assert server.url in str(error.value)
    assert "hf_secret" not in f"{error.value!r}{error.value.__cause__!r}"


def test_a_refusal_that_quotes_the_token_is_blackened(serve, monkeypatch):
    server = serve(answer=plain, script=lambda *_: ("status", 400))
    monkeypatch.setenv("MY_TOKEN", "scripted")
    reply = ask(server, token_env="MY_TOKEN")[0]
    assert reply.refused == "refused"
    assert "HTTP 400" in reply.text
    assert "scripted" not in reply.text


def test_a_token_saved_on_disk_is_not_sent(serve, monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    file = tmp_path / "token"
    file.write_text("hf_saved")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(file))
    server = serve(answer=plain)
    ask(server)
    assert "hf_saved" not in str(server.headers)


def test_a_server_that_refuses_everything_stops_the_run(serve):
    server = serve(answer=plain, script=lambda *_: ("status", 400))
    with pytest.raises(ServerUnavailableError, match="refused all of the first"):
        ask(server, 12)


def test_a_server_that_fails_everything_stops_the_run(serve):
    server = serve(answer=plain, script=lambda *_: ("status", 500))
    with pytest.raises(ServerUnavailableError, match=r"failed every request for .* s \(HTTP 500\); look at"):
        ask(server, max_retries=2, restart_s=0.3)


def test_a_question_that_alone_fails_is_its_own_fault(serve):
    server = serve(answer=plain, script=lambda body, _: ("status", 500) if body["seed"] == 1 else None)
    replies = ask(server, 3, max_retries=3)
    assert [reply.refused for reply in replies] == ["", "server_failed", ""]


def test_nobody_listens(monkeypatch):
    connect, tries = asyncio.open_connection, []
    monkeypatch.setattr(asyncio, "open_connection", lambda *where: (tries.append(where), connect(*where))[1])
    with reserve() as free:
        host, port = free.getsockname()
        url = f"http://{host}:{port}/v1"
        with pytest.raises(ServerUnavailableError, match=f"nothing answers at {url}; start the server"):
            asyncio.run(Client(Endpoint(urls=(url,)), Usage(), "double").__aenter__())
    assert tries == [(host, port)]  # once, and not as often as a question


def test_offline_mode_is_named(serve, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ServerUnavailableError, match="HF_HUB_OFFLINE"):
        ask(serve(answer=plain))


def test_a_server_that_restarts_is_waited_for(serve):
    server, usage = serve(answer=plain), Usage()

    def stops(*_):
        server.stop()
        return ("status", 503, {"Connection": "close"})

    async def before_and_after():
        endpoint = Endpoint(urls=(server.url,), backoff_s=0.1, max_backoff_s=0.1, max_retries=1000)
        async with Client(endpoint, usage, "double") as client:
            server.script = stops
            first = asyncio.create_task(client.request(question))
            # the failure, and one attempt while nobody listens
            while usage.retried < 2:
                await asyncio.sleep(0.01)
            assert len(server.bodies) == 1
            serve(answer=plain, port=server.server_port)
            return await first

    assert asyncio.run(before_and_after()).text == "reply 1"


def test_many_connections(serve, monkeypatch):
    monkeypatch.setattr(concurrency_limit, "FIRST", 120)
    everyone = threading.Barrier(120)
    # nobody is answered before all are there
    server = serve(answer=plain, script=lambda *_: everyone.wait() and None)
    assert [reply.text for reply in ask(server, 120, concurrency=120)] == [f"reply {n}" for n in range(120)]
    assert set(server.asked.values()) == {1}


def test_two_servers_share_the_work(serve):
    servers = [serve(answer=plain) for _ in range(2)]
    ask(servers[0], 20, urls=tuple(server.url for server in servers))
    assert [len(server.bodies) for server in servers] == [10, 10]


SCHEMA = {"name": "texts", "schema": {"type": "object"}}
FORMS = [
    {"type": "json_schema", "json_schema": SCHEMA},
    {"type": "json_object", "value": SCHEMA["schema"]},
    {"type": "json_object"},
    None,
]


@pytest.mark.parametrize("known", range(4))
def test_a_schema_goes_out_in_a_form_that_the_server_knows(serve, known):
    def script(body, _):
        return None if body["seed"] > 5 or body.get("response_format") == FORMS[known] else ("refuse", "unknown form")

    server = serve(answer=plain, script=script)
    parameters = {"max_tokens": 5, "response_format": {"type": "json_schema", "json_schema": SCHEMA}}

    async def two():
        endpoint = Endpoint(urls=(server.url,), timeout_s=NEVER_S)
        async with Client(endpoint, Usage(), "double") as client:
            for seed in (1, 2):
                request = Request([{"role": "user", "content": "hello"}], "double", {**parameters, "seed": seed})
                assert (await client.request(lambda request=request: request)).text == f"reply {seed}"

    asyncio.run(two())
    # each form once, and the one that serves from then on
    assert [body.get("response_format") for body in server.bodies] == [*FORMS[: known + 1], FORMS[known]]


def test_a_refusal_of_every_form_is_the_request_s_own(serve):
    server = serve(answer=plain, script=lambda body, _: ("refuse", "too long") if body["seed"] == 1 else None)
    parameters = {"max_tokens": 5, "response_format": {"type": "json_schema", "json_schema": SCHEMA}}

    async def some():
        async with Client(Endpoint(urls=(server.url,), timeout_s=NEVER_S), Usage(), "double") as client:
            replies = []
            for seed in (1, 2, 1):
                request = Request([{"role": "user", "content": "hello"}], "double", {**parameters, "seed": seed})
                replies.append(await client.request(lambda request=request: request))
            return replies

    first, second, third = asyncio.run(some())
    assert (first.refused, second.refused, third.refused) == ("refused", "", "refused")
    assert len(server.bodies) == 4 + 1 + 1
    assert server.bodies[-1]["response_format"] == FORMS[0]


@pytest.mark.parametrize("bad", [{"urls": ()}, {"urls": ("gpu:80",)}, {"concurrency": 0}, {"timeout_s": 0}])
def test_bad_endpoints(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Endpoint(**bad)


def test_a_password_in_an_address_is_refused_and_not_told():
    with pytest.raises(ConfigError) as error:
        Endpoint(urls=("http://me:secret@gpu/v1",))
    assert "secret" not in str(error.value)
