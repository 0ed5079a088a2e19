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


BAD_BODIES = {
    "a message that is a text": ("body", {"choices": [{"message": "Both show a dog."}]}),
    "200,000 brackets": ("body", b"[" * 200_000),
    "10 MB of text": ("reply", "word " * 2_000_000),
    "600 MB without a length": ("endless", b'{"choices": [' + b" " * 100_000),
    "a choice with an error": ("body", {"choices": [{"error": {"code": 502, "message": "gone"}, "message": {}}]}),
    "finish_reason error": ("reply", "Generation failed", "error"),
    "an error alone": ("body", {"error": {"message": "overloaded", "code": 529}}),
    "null": ("body", b"null"),
    "nothing": ("body", b""),
    "HTTP 424": ("status", 424),
    "HTTP 529": ("status", 529),
}


@pytest.mark.parametrize("fault", BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_body_that_is_no_response_is_asked_for_again(serve, fault):
    server = serve(answer=plain, script=lambda _, n: fault if n == 1 else None)
    usage = Usage()
    assert [reply.text for reply in ask(server, 2, usage)] == ["reply 0", "reply 1"]
    assert usage.retried == 2


def test_no_more_is_read_than_a_response_can_need(serve):
    server = serve(answer=plain, script=lambda *_: ("endless", b" " * 100_000))
    with pytest.raises(ServerUnavailableError, match=r"the response is longer than 4 MiB"):
        ask(server, max_retries=1, restart_s=0.01)
    # what the sockets hold is sent as well
    assert server.sent < (len(server.bodies) + server.own.total()) * 16 * 2**20


def test_a_length_beyond_the_limit_is_believed(serve):
    whole = b"{}" + b" " * 5 * 2**20
    server = serve(answer=plain, script=lambda _, n: ("body", whole) if n == 1 else None)
    assert ask(server)[0].text == "reply 0"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ({"object": "error", "message": "The model is overloaded"}, "The model is overloaded"),
        ({"error": {"message": "bad token scripted"}}, "bad token …"),
    ],
)
def test_the_words_of_a_server_that_fails_everything_are_told(serve, monkeypatch, code, words):
    monkeypatch.setenv("MY_TOKEN", "scripted")
    server = serve(answer=plain, script=lambda *_: ("body", code))
    with pytest.raises(ServerUnavailableError, match=words):
        ask(server, token_env="MY_TOKEN", max_retries=1, restart_s=0.01)


def test_what_a_filter_withheld_is_a_rejection_that_costs(serve):
    server = serve(
        answer=plain, script=lambda body, _: ("reply", "The first", "content_filter") if body["seed"] == 1 else None
    )
    usage = Usage()
    replies = ask(server, 3, usage, concurrency=1)
    assert [reply.refused for reply in replies] == ["", "content_filter", ""]
    assert usage.completion_tokens == 21


def test_a_filter_that_refuses_the_prompt_is_named(serve):
    refusal = {"code": "content_filter", "message": "filtered"}
    server = serve(answer=plain, script=lambda body, _: ("refuse", refusal) if body["seed"] == 1 else None)
    replies = ask(server, 3, concurrency=1)
    assert [reply.refused for reply in replies] == ["", "content_filter", ""]
    assert replies[1].text == "HTTP 400: filtered"


def test_the_only_model_of_a_server_is_taken_and_named(serve, monkeypatch):
    notes = []
    monkeypatch.setattr("megapairs_hf.annotation.client.served_models.note", notes.append)
    server = serve(answer=plain, models=["org/only-one"])
    replies = ask(server, 20)
    assert [reply.text for reply in replies] == [f"reply {n}" for n in range(20)]
    assert {reply.model for reply in replies} == {"org/only-one"}
    assert {body["model"] for body in server.bodies[-5:]} == {"org/only-one"}
    assert (len(notes), server.looks) == (1, 1)
    assert "has no model 'double'; taking 'org/only-one'" in notes[0]


def test_the_model_that_was_named_needs_no_list(serve):
    server = serve(answer=plain, models=["double", "another"])
    assert ask(server)[0].model == ""
    assert server.looks == 0


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (["a", "b/c"], "there is no model 'double' there, but 'a', 'b/c'; set `model` to one of them"),
        ([], "there is no model 'double' there, or the address lacks its /v1"),
    ],
)
def test_several_models_are_listed(serve, models, words):
    server = serve(answer=plain, models=models)
    with pytest.raises(ServerUnavailableError, match=words):
        ask(server)


@pytest.mark.parametrize(
    "models", [None, {"data": 5}, {"data": [5, None, {"id": 7}, {"id": "x"}, {"id": "y"}]}, 3, "x"]
)
def test_a_list_of_models_of_any_form(serve, models):
    server = serve(answer=plain, models=models, script=lambda *_: ("status", 404))
    with pytest.raises(ServerUnavailableError, match="no model 'double'"):
        ask(server)


@pytest.mark.parametrize("token", ["a\u00e9b", "a\nb", "a\x00b"])
def test_a_token_that_cannot_be_sent_is_an_error_before_anything_is_sent(monkeypatch, token):
    monkeypatch.setattr("os.environ", {"MY_TOKEN": token})
    with pytest.raises(ConfigError, match="MY_TOKEN holds a character"):
        Client(Endpoint(token_env="MY_TOKEN"), Usage(), "double")


def test_an_address_without_a_port_that_exists():
    for url in ("http://127.0.0.1:99999/v1", "http://" + "a" * 70 + ".invalid/v1"):
        with pytest.raises(ServerUnavailableError, match="nothing answers"):
            asyncio.run(Client(Endpoint(urls=(url,)), Usage(), "double").__aenter__())


def test_a_prompt_with_half_a_letter_is_refused(serve):
    server = serve(answer=plain)

    async def one():
        async with Client(Endpoint(urls=(server.url,)), Usage(), "double") as client:
            return await client.request(lambda: Request([{"role": "user", "content": "\ud83d"}], "double", {}))

    assert asyncio.run(one()).refused == "refused"


class BreakingError(Exception):
    """Nothing that anyone expects."""


@pytest.mark.parametrize(
    "broken", ["client.note", "client.Client._any_client", "client.Client._reopen", "load_balancer.Server.restart"]
)
def test_a_health_check_that_breaks_hangs_nobody(serve, monkeypatch, broken):
    def breaks(*_, **__):
        raise BreakingError("no such file")

    server = serve(answer=plain)

    def mend(body, _):
        # the server is back at the third canary
        return ("status", 500) if server.own.total() < 3 else None

    server.script = mend
    monkeypatch.setattr(f"megapairs_hf.annotation.client.{broken}", breaks)

    async def in_time():
        endpoint = Endpoint(urls=(server.url,), backoff_s=0.01, timeout_s=NEVER_S, max_retries=1, concurrency=2)
        async with asyncio.timeout(60), Client(endpoint, Usage(), "double") as client:
            return await asyncio.gather(*(client.request(question) for _ in range(8)))

    with pytest.raises(ServerUnavailableError, match=r"health check of .* broke \(BreakingError: no such file\)"):
        asyncio.run(in_time())


def test_another_server_goes_on_where_a_health_check_breaks(serve, monkeypatch):
    bad, good = serve(answer=plain, script=lambda *_: ("status", 500)), serve(answer=plain)
    monkeypatch.setattr(Client, "_any_client", lambda *_: 1 / 0)
    replies = ask(bad, 30, urls=(bad.url, good.url), max_retries=2)
    assert [reply.text for reply in replies] == [f"reply {n}" for n in range(30)]
