"""What the Hub refuses, as one sentence each that says what to do next."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from megapairs_hf.core.errors import HubError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from megapairs_hf.hub.config import PushConfig

LOGIN = "you are not logged in, or the token is not valid; run `hf auth login` or set HF_TOKEN"
FORBIDDEN = 403
ADVICE = {
    401: LOGIN,
    FORBIDDEN: "you may not write there; use a token with write access",
    404: "there is no repository of this kind and name that you may see; check both, and your token",
}


@contextmanager
def explained_hub(config: PushConfig) -> Iterator[None]:
    """Turn what huggingface_hub raises into a `HubError`."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalTokenNotFoundError

    try:
        yield
    except HFValidationError as error:
        raise HubError(f"{config.repo_id!r} is no repository name: {_line(error)}; use organization/name") from error
    except LocalTokenNotFoundError as error:
        raise HubError(f"cannot push {config.repo_id}: {LOGIN}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = ADVICE.get(status, "the Hub refuses it; run the same command again later")
        if status == FORBIDDEN and not config.create_pr:
            advice += ", or --create-pr"
        raise HubError(
            f"cannot push {config.repo_id}: {advice} ({error.server_message or f'status {status}'})"
        ) from error
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


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
