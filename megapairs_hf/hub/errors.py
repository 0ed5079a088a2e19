"""What the Hub refuses, as one sentence each that says what to do next."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import HubError
from megapairs_hf.hub.remote_state import repo_type

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megapairs_hf.hub.config import PushConfig
    from megapairs_hf.hub.prepare import Kind

ROOM = "the Hub has no room for it there; make room, ask for more storage, or push to another account"
TELLS = {
    400: "the Hub refuses the request; correct what it names",
    401: "you are not logged in, or the token is not valid; run `hf auth login` or set HF_TOKEN",
    402: ROOM,
    403: "you may not write there; use a token with write access, --create-pr, or, where the Hub speaks of storage,"
    " make room",
    409: "someone else is writing there; run the same command again",
    413: ROOM,
    429: "the Hub asks for a pause; run the same command again later",
}


@contextmanager
def explained_hub(api: Any, kind: Kind, config: PushConfig) -> Iterator[None]:
    """Turn what huggingface_hub raises into a `HubError`."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalTokenNotFoundError

    try:
        yield
    except HFValidationError as error:
        raise HubError(f"{config.repo_id!r} is no repository name: {_line(error)}; use organization/name") from error
    except LocalTokenNotFoundError as error:
        raise HubError(f"cannot push {config.repo_id}: {TELLS[401]}") from error
    except HfHubHTTPError as error:
        raise HubError(_refused(api, kind, config, error)) from error
    except (HTTPError, OSError) as error:
        raise HubError(
            f"cannot push {config.repo_id}: the Hub does not answer ({_line(error)}); check the network and"
            " HF_HUB_OFFLINE, then run the same command again"
        ) from error
    except ValueError as error:
        # huggingface_hub raises it where the Hub refuses the card's metadata or an object of the upload
        raise HubError(
            f"cannot push {config.repo_id}: {_line(error)}; correct what the Hub names and run the same command again"
        ) from error


def _refused(api: Any, kind: Kind, config: PushConfig, error: Any) -> str:
    status = error.response.status_code
    if status == 404:
        wanted = repo_type(kind)
        other = "model" if wanted == "dataset" else "dataset"
        try:
            taken = api.repo_exists(config.repo_id, repo_type=other)
        except OSError:
            taken = False
        if taken:
            return f"{config.repo_id} exists as a {other}, not as a {wanted}; push under another name"
        return f"{config.repo_id} was not found, or you may not see it; check the name and your token"
    told = error.server_message or f"status {status}"
    return f"cannot push {config.repo_id}: {TELLS.get(status, 'the Hub failed; run the same command again')} ({told})"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
