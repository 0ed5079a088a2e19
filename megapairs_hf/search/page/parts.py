"""What pages are put together from: templates whose values are escaped, and the look.

What surprises: `gr.HTML` with a template escapes every value that it shows, where `gr.Markdown` would load an image of
another host that a caption names.
"""

from __future__ import annotations

import os
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

    from megapairs_hf.search.page.config import ServedPage

PAGE = "megapairs_hf.search.page"


def asset(name: str, package: str = PAGE) -> str:
    """A template, script or style of a page."""
    return (files(package) / "assets" / name).read_text(encoding="utf-8")


def mount(app: FastAPI, make: Callable[[], Any], config: ServedPage, css: str | None = None) -> FastAPI:
    """Put a page behind the routes of an application.

    Args:
        app: with its own routes.
        make: makes the page.
        config: the settings.
        css: styles; None for those of the search page.

    Returns:
        The application.
    """
    # Gradio would report to its makers what is run
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    # fonts of the visitor's own machine, so that no other host is asked
    fonts, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    theme = gr.themes.Default(primary_hue=gr.themes.colors.indigo, font=fonts, font_mono=mono).set(
        button_primary_background_fill="*primary_700", button_primary_background_fill_dark="*primary_700"
    )
    gr.mount_gradio_app(
        app,
        make(),
        path="/",
        server_name=config.host,
        footer_links=[],
        allowed_paths=[],
        show_error=False,
        max_file_size=f"{config.max_upload_mb}mb",
        ssr_mode=False,
        theme=theme,
        css=css or asset("page.css"),
    )
    return app


def template(name: str, value: dict[str, Any], script: str | None = None, package: str = PAGE, **settings: Any) -> Any:
    """A part of the page that is made of a template, whose values are escaped.

    Args:
        name: of the file in `assets`, without `.html`.
        value: its slots.
        script: of the file in `assets`, without `.js`; what turns clicks into events.
        package: that has these assets.
        settings: of `gr.HTML`.
    """
    import gradio as gr

    # Gradio hands the slots over below `value`
    slots = "{{#with value}}" + asset(f"{name}.html", package) + "{{/with}}"
    js = asset(f"{script}.js", package) if script else None
    return gr.HTML(value=value, html_template=slots, js_on_load=js, padding=False, **settings)


def with_event(function: Any) -> Any:
    """A function whose annotation of the event Gradio can read."""
    import gradio as gr

    function.__annotations__["event"] = gr.EventData
    return function
