"""Bodies that are no responses, models that are not served, and health checks that break."""

import asyncio

import httpx2
import pytest

from megapairs_hf.annotation.client.budget import Usage
from megapairs_hf.annotation.client.client import Client
from megapairs_hf.annotation.client.endpoint import Endpoint
from megapairs_hf.annotation.client.health import HealthChecks
from megapairs_hf.annotation.client.http_client import BoundedClient, StatusError
from megapairs_hf.annotation.client.messages import Request
from megapairs_hf.core.errors import ConfigError, ServerUnavailableError

from .test_client import NEVER_S, ask, plain, question

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


@pytest.mark.parametrize("status", [401, 404, 429, 503])
@pytest.mark.parametrize("declared", [True, False])
def test_an_error_has_its_status_however_long_its_body_is(status, declared):
    async def body():
        for _ in range(50):
            yield b" " * 100_000

    def answer(request):
        content = b" " * 5_000_000 if declared else body()
        return httpx2.Response(status, headers={"retry-after": "7"}, content=content)

    async def send():
        async with BoundedClient(transport=httpx2.MockTransport(answer)) as client:
            await client.get("http://127.0.0.1/")

    with pytest.raises(StatusError) as raised:
        asyncio.run(send())
    assert (raised.value.status, raised.value.retry_after) == (status, "7")


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
    "broken",
    ["health.note", "health.HealthChecks._any_client", "health.HealthChecks._reopen", "load_balancer.Server.restart"],
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
    monkeypatch.setattr(HealthChecks, "_any_client", lambda *_: 1 / 0)
    replies = ask(bad, 30, urls=(bad.url, good.url), max_retries=2)
    assert [reply.text for reply in replies] == [f"reply {n}" for n in range(30)]
