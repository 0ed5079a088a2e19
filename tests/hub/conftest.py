"""A Hub for the tests of this folder."""

import pytest

from tests.hub.loopback import start


def serve():
    held, server = start()
    held.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    yield held
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub():
    yield from serve()


@pytest.fixture(scope="module")
def shared_hub():
    yield from serve()
