"""What the page refuses: files, sizes, names, passwords and sites that it should not answer, over a real socket."""

from __future__ import annotations

import base64
import csv
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

import pytest
from PIL import Image

from megapairs_hf.search import SearchIndex
from megapairs_hf.search.page.app import make_app
from megapairs_hf.search.page.config import PageConfig
from megapairs_hf.search.page.guard import Guard, Tries, guarded
from tests.search.serving import running, served_index, serving
from tests.search.stand_in import COLORS, ColorModel, color_folder
from tests.small import claimed_png

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]
MEAN = '</script><script>alert(1)</script>"><img src=x onerror=alert(1)> {{7*7}}'


class Answer:
    """A response, read to its end."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def send(
    url: str, path: str, method: str = "GET", body: Any = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """A request with its path as it is written."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}), encode_chunked=False)
        return Answer(connection.getresponse())
    finally:
        connection.close()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = color_folder(tmp_path_factory.mktemp("guarded") / f"photos {MEAN[:9]!r}".replace("/", ""))
    for path in folder.rglob("*.png"):
        path.with_suffix(".txt").write_text(f"a {path.parent.name} card {MEAN}")
    (folder / "blue" / "00.txt").write_text('=HYPERLINK("http://192.0.2.1")')
    return folder


@pytest.fixture(scope="module")
def index(photos: Path) -> SearchIndex:
    class Named(ColorModel):
        pass

    Named.__name__ = MEAN
    return SearchIndex.build(Named(), photos, photos.parent / "idx")


@pytest.fixture(scope="module")
def url(index: SearchIndex) -> Iterator[str]:
    with serving([served_index(index.folder)], PageConfig(title=f"Cards {MEAN}"), banner=MEAN) as url:
        yield url


@pytest.mark.parametrize(
    "path",
    [
        "/images/0/../../etc/passwd",
        "/images/0/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/images/0/..%2f..%2f..%2fetc%2fpasswd",
        "/images/../../../../etc/passwd",
        "/images/0//etc/passwd",
        "/images/0/-1",
        "/images/0/24",
        "/images/1/0",
        "/images/0/99999999999999999999999999",
        "/images/0/1e1",
        "/images/0/red%2f00.png",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        "/gradio_api/file=%2e%2e/%2e%2e/etc/passwd",
        "/gradio_api/file={photos}/red/00.png",
        "/gradio_api/file={index}/index.json",
        "/gradio_api/file={root}/setup.cfg",
        "/gradio_api/proxy=http://192.0.2.1/x",
        "/file=/etc/passwd",
        "/static/../../../../etc/passwd",
        "/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/results.zip?rows=../../etc/passwd",
        "/results.csv?rows=0&index=7",
        "/results.csv?rows=0&rows=1",
        "/results.csv?rows=0&index=0&index=0",
        "/docs",
    ],
)
def test_only_images_of_the_index_are_served(url: str, index: SearchIndex, photos: Path, path: str) -> None:
    path = path.format(photos=quote(str(photos)), index=quote(str(index.folder)), root=ROOT)
    answer = send(url, path)
    assert answer.status in {400, 403, 404, 405, 409, 422}, answer.body[:200]
    assert b"root:" not in answer.body
    assert not answer.body.startswith((b"RIFF", b"\x89PNG", b"PK"))


def test_an_image_is_sent_as_an_image_alone(url: str) -> None:
    answer = send(url, "/images/0/3?side=64")
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"
    with Image.open(io.BytesIO(answer.body)) as image:
        assert max(image.size) <= 64
    assert send(url, "/images/0/3?side=100000").status == 422


@pytest.mark.parametrize("how", ["link", "other", "gone"])
def test_what_lies_in_the_place_of_an_image_is_not_sent(tmp_path: Path, how: str) -> None:
    photos = color_folder(tmp_path / "photos", 6)
    index = SearchIndex.build(ColorModel(), photos, tmp_path / "idx")
    row, path = index.rows.row_of("red/00.png"), photos / "red" / "00.png"
    secret = tmp_path / "secret.png"
    Image.new("RGB", (30, 30), "purple").save(secret)
    path.unlink()
    if how == "link":
        path.symlink_to(secret)
    elif how == "other":
        path.write_bytes(secret.read_bytes())
    with serving([served_index(tmp_path / "idx")]) as url:
        answer = send(url, f"/images/0/{row}")
        assert answer.status == 409
        assert "update the index" in answer.json["error"]
        assert send(url, "/api/search?text=red&k=1").json["hits"][0]["image_id"] == "red/00.png"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (claimed_png(60_000, 60_000), "too_many_pixels"),
        (claimed_png(12_000, 9_000), "too_many_pixels"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", "unsupported_format"),
        (b"%PDF-1.7", "unsupported_format"),
        (b"GIF89a", ""),
        (b"no image", "not_an_image"),
    ],
)
def test_a_body_that_is_no_usable_image_gets_a_sentence(url: str, content: bytes, reason: str) -> None:
    answer = send(url, "/api/search?text=red", "POST", content)
    assert answer.status == 400
    assert "cannot be used" in answer.json["error"]
    assert reason in answer.json["error"]


def multipart(content: bytes) -> tuple[bytes, dict[str, str]]:
    mark = uuid.uuid4().hex
    head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'.encode()
    return head + content + f"\r\n--{mark}--\r\n".encode(), {"content-type": f"multipart/form-data; boundary={mark}"}


@pytest.mark.parametrize("path", ["/api/search?text=red", "/gradio_api/upload"])
@pytest.mark.parametrize("chunked", [False, True])
def test_fifty_megabytes_are_refused(url: str, path: str, chunked: bool) -> None:
    body, headers = multipart(bytes(50_000_000))
    parts = [body[i : i + 1_000_000] for i in range(0, len(body), 1_000_000)]
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as peer:
        lines = [f"POST {path} HTTP/1.1", f"Host: {address.netloc}", *(f"{k}: {v}" for k, v in headers.items())]
        lines.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}")
        peer.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        try:
            for part in parts:
                peer.sendall(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
        except OSError:
            pass  # the server has hung up, as it may
        first = b""
        try:
            first = peer.recv(4096)
        except ConnectionResetError:
            pass
    assert first == b"" or b" 413 " in first.split(b"\r\n")[0]
    if chunked:
        assert b" 413 " in first.split(b"\r\n")[0]
    assert send(url, "/api/search?text=red").status == 200


def test_the_limit_is_the_announced_one(url: str) -> None:
    answer = send(url, "/api/search", "POST", b"", {"content-length": "20000001"})
    assert (answer.status, answer.body) == (413, b"at most 20 MB are accepted")
    assert send(url, "/api/search", "POST", None, {"content-length": "-1"}).status in {400, 413}


def test_texts_of_others_are_escaped_in_the_page(url: str) -> None:
    html = send(url, "/").body.decode()
    assert "alert(1)" in html, "captions of the examples are in the page"
    assert "<script>alert(1)" not in html
    assert "<img src=x" not in html
    answer = send(url, "/api/search?text=red")
    assert answer.headers["content-type"] == "application/json"
    assert any("<script>alert(1)" in hit["caption"] for hit in answer.json["hits"])


def test_no_cell_of_the_table_is_a_formula(url: str, index: SearchIndex) -> None:
    row = index.rows.row_of("blue/00.png")
    answer = send(url, f"/results.csv?rows={row}")
    (line,) = list(csv.reader(io.StringIO(answer.body.decode("utf-8-sig"))))[1:]
    assert line[:2] == ["1", ""]
    assert line[3] == "'" + '=HYPERLINK("http://192.0.2.1")'
    assert answer.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize(
    "query",
    [
        "rows=1,x",
        "rows=" + ",".join(["1"] * 201),
        "rows=1;2",
        "rows=²",
        "rows=1&scores=x",
        "rows=1&scores=nan",
        "rows=1,2&scores=1",
        "rows=1&scores=1,2",
    ],
)
def test_rows_of_a_download_are_numbers(url: str, query: str) -> None:
    assert send(url, f"/results.zip?{quote(query, safe='=,;&')}").status in {400, 422}


@pytest.mark.parametrize(
    "query", ["", "text=", "text=red&k=0", "text=red&k=201", "row=24", "row=-1", "text=red&weight=nan&row=1"]
)
def test_a_query_that_is_none_gets_a_status(url: str, query: str) -> None:
    assert send(url, f"/api/search?{query}").status in {400, 422}


def test_fifty_queries_at_once_get_their_own_answers(url: str, index: SearchIndex) -> None:
    colors = list(COLORS)
    queries = [{"text": colors[i % 6], "row": i % 24, "weight": (i % 10) / 10, "k": 5} for i in range(50)]
    queries[::3] = [{"text": query["text"], "k": query["k"]} for query in queries[::3]]
    start = threading.Barrier(50)

    def ask(query: dict[str, Any]) -> list[str]:
        start.wait()
        answer = send(url, f"/api/search?{urlencode(query)}")
        return [hit["image_id"] for hit in answer.json["hits"]]

    expected = [SearchIndex.open(index.folder, model=ColorModel()).query(**query).ids for query in queries]
    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(ask, queries)) == expected


def test_slow_visitors_hold_nobody_up(url: str) -> None:
    address = urlsplit(url)
    slow = [socket.create_connection((address.hostname, address.port)) for _ in range(40)]
    try:
        for number, peer in enumerate(slow):
            lines = f"POST /api/search?text=red HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 1000000\r\n\r\n"
            peer.sendall(lines.encode()[: 20 if number % 2 else None])
            peer.sendall(b"x")
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(lambda _: send(url, "/api/search?text=red").status, range(8))) == {200}
    finally:
        for peer in slow:
            peer.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:7860", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:7860", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:7860", 403),
        ("", 403),
    ],
)
def test_only_names_of_this_machine_are_answered(url: str, host: str, status: int) -> None:
    """A page of the network whose name leads here (DNS rebinding) reads nothing."""
    for path in ("/", "/images/0/0", "/api/search?text=red", "/config"):
        assert send(url, path, headers={"Host": host}).status == status


SAME = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {}, 200),
        ("GET", SAME, 200),
        ("GET", {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ("GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403),
        ("POST", SAME, 200),
        ("POST", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
        ("POST", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ("POST", {"Origin": "http://evil.example"}, 403),
        ("POST", {"Origin": "null"}, 403),
        ("POST", {"Origin": "{url}"}, 200),
        ("POST", {"Origin": "{url}0"}, 403),
        ("POST", {}, 200),
    ],
)
def test_pages_of_other_sites_may_only_link(url: str, method: str, headers: dict[str, str], status: int) -> None:
    sink = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(sink, "PNG")
    headers = {name: value.format(url=url) for name, value in headers.items()}
    body = sink.getvalue() if method == "POST" else None
    answer = send(url, "/api/search?text=red", method, body, headers)
    assert answer.status == status
    assert "access-control-allow-origin" not in answer.headers
    if status == 403:
        joined = send(url, "/gradio_api/queue/join", "POST", b"{}", {"content-type": "application/json", **headers})
        assert joined.status == 403, "Gradio's own routes too"


def basic(words: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(words.encode()).decode()}


def test_one_password_for_everything_with_a_limit_on_tries(index: SearchIndex) -> None:
    config, now = PageConfig(auth="ann:pässword:1"), [1000.0]
    app = Guard(
        make_app([served_index(index.folder)], config),
        auth=config.auth,
        max_bytes=1_000_000,
        tries=Tries(clock=lambda: now[0]),
    )
    right, wrong = basic("ann:pässword:1"), basic("ann:guess")
    paths = ["/", "/config", "/images/0/0", "/api/search?text=red", "/results.csv?rows=0", "/gradio_api/info"]
    with running(app) as url:
        for path in [*paths, "/gradio_api/file=/etc/passwd", "/gradio_api/queue/data?session_hash=1", "/nothing"]:
            answer = send(url, path)
            assert (answer.status, answer.body) == (401, b"a user name and a password are needed")
            assert answer.headers["www-authenticate"].startswith("Basic")
        assert send(url, "/gradio_api/queue/join", "POST", b"{}").status == 401
        for path in paths:
            assert send(url, path, headers=right).status == 200
        for words in ("Basic", "Basic !!!", "Bearer x", "Basic " + base64.b64encode(b"ann").decode()):
            assert send(url, "/", headers={"Authorization": words}).status == 401
        for _ in range(6):
            assert send(url, "/", headers=wrong).status == 401
        assert send(url, "/", headers=wrong).status == 429
        assert send(url, "/", headers=right).status == 429, "who guesses right after ten is not told"
        now[0] += 59
        assert send(url, "/", headers=right).status == 429
        now[0] += 2
        assert send(url, "/", headers=right).status == 200


def test_a_websocket_is_refused_as_a_request_is() -> None:
    import asyncio

    async def never(*_: Any) -> None:
        raise AssertionError("the application was reached")

    sent: list[Any] = []

    async def keep(message: Any) -> None:
        sent.append(message)

    guard = guarded(never, PageConfig(auth="a:b"))
    scope = {"type": "websocket", "path": "/", "headers": [(b"host", b"localhost")], "client": ("10.0.0.1", 1)}
    asyncio.run(guard(scope, never, keep))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def call_gradio(url: str, number: int, data: list[Any]) -> dict[str, Any]:
    """What one of the page's functions gives, through Gradio's queue."""
    session = uuid.uuid4().hex
    body = json.dumps({"data": data, "fn_index": number, "session_hash": session, "trigger_id": None})
    joined = send(url, "/gradio_api/queue/join", "POST", body, {"content-type": "application/json"})
    if joined.status != 200:
        return {"success": False, "status": joined.status}
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
    response = connection.getresponse()
    while line := response.readline():
        if line.startswith(b"data:"):
            message: dict[str, Any] = json.loads(line[5:])
            if message["msg"] == "process_completed":
                connection.close()
                return message
    raise AssertionError("the stream ended")


def test_no_function_of_the_page_reads_a_file_that_was_not_uploaded(url: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64), "purple").save(secret)
    config = send(url, "/config").json
    image = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "image")
    functions = [d for d in config["dependencies"] if image in d["inputs"]]
    assert functions
    for function in functions:
        for path in (str(secret), "http://127.0.0.1:1/a.png", "file:///etc/passwd"):
            value = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
            data = [value if one == image else None for one in function["inputs"]]
            result = call_gradio(url, function["id"], data)
            assert not result["success"]
            assert "data:image/webp" not in json.dumps(result)


def test_an_update_that_is_killed_while_the_page_is_served(tmp_path: Path) -> None:
    photos = color_folder(tmp_path / "photos", 12)
    index = SearchIndex.build(ColorModel(), photos, tmp_path / "idx")
    script = (
        "import sys; from tests.killing import die_before; die_before(1, 'index.json')\n"
        "from megapairs_hf.search import SearchIndex; from tests.search.stand_in import ColorModel\n"
        "SearchIndex.open(sys.argv[1], model=ColorModel()).update()"
    )
    with serving([served_index(tmp_path / "idx")]) as url:
        before = send(url, "/api/search?text=red&k=12").json["hits"]
        (photos / "black" / "00.png").unlink()
        Image.new("RGB", (40, 40), COLORS["red"]).save(photos / "red" / "new.png")
        done = subprocess.run(
            [sys.executable, "-c", script, str(index.folder)], check=False, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert send(url, "/api/search?text=red&k=12").json["hits"] == before
        opened = SearchIndex.open(index.folder, model=ColorModel())
        assert len(opened) == 12
        opened.update()
        assert "red/new.png" in SearchIndex.open(index.folder, model=ColorModel()).query(text="red", k=4).ids
        # the page goes on with what it has
        assert send(url, "/api/search?text=red&k=12").json["hits"] == before


def test_nothing_is_reported_to_gradios_makers(url: str) -> None:
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert send(url, "/config").json["analytics_enabled"] is False
