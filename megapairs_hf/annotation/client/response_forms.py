"""How a request may say what form the response is to have.

What surprises: huggingface_hub turns every schema into the form of TGI, which other servers take for plain JSON; so
the form is put into the body after the library has made it, from a context variable.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

# TGI before 3.3 knows the second only
RESPONSE_FORMS: tuple[Callable[[dict[str, Any]], dict[str, Any] | None], ...] = (
    lambda schema: {"type": "json_schema", "json_schema": schema},
    lambda schema: {"type": "json_object", "value": schema["schema"]},
    lambda _: {"type": "json_object"},
    lambda _: None,
)
FORM: ContextVar[dict[str, Any] | None] = ContextVar("FORM", default=None)


def put_form(body: Any) -> None:
    """Put the form chosen into a body that asks for one."""
    if isinstance(body, dict) and "response_format" in body:
        form = FORM.get()
        del body["response_format"]
        if form is not None:
            body["response_format"] = form
