"""The page in Gradio: what is on it, and which function of `events.py` is called when something is clicked.

What surprises: results are `gr.HTML` with a template, which escapes every value, and show images of our own route;
Gradio's gallery would copy each image into its cache, and cannot be voted on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.search.page.conversation import Conversation, QueryStep
from megapairs_hf.search.page.events import PageEvents
from megapairs_hf.search.page.parts import template, with_event
from megapairs_hf.search.page.session import START, short
from megapairs_hf.search.page.sources import BASE, TRAINED

if TYPE_CHECKING:
    from collections.abc import Sequence

    import gradio as gr

    from megapairs_hf.search.page.config import PageConfig
    from megapairs_hf.search.page.served import ServedIndex

COMBINE = [
    ("the last result, changed by the new text", "last image"),
    ("the first image, with all texts", "all texts"),
]
BY = ["image and text", "image only", "text only"]
UPLOADS_KEPT_S = 3600
NO_IMAGE = {"src": "", "label": ""}
QUIET = {"show_progress": "hidden", "api_visibility": "private"}


def make_page(indexes: Sequence[ServedIndex], config: PageConfig, banner: str = "") -> Any:
    """The page.

    Args:
        indexes: that are searched; the results of several stand side by side.
        config: the settings.
        banner: a sentence above everything, such as that the model is a toy.
    """
    import gradio as gr

    events = PageEvents(indexes, config)
    folder = indexes[0].index.folder
    # of a work folder, whose indexes have names of ours
    name = folder.parent.name if folder.name in {TRAINED, BASE} else folder.name
    title = config.title or f"{name}: {len(indexes[0]):,} images"
    with gr.Blocks(
        title=title, analytics_enabled=False, delete_cache=(UPLOADS_KEPT_S, UPLOADS_KEPT_S), fill_width=True
    ) as page:
        template("head", {"title": title, "text": _models(indexes), "banner": banner})
        parts: dict[str, Any] = {"conversation": gr.State(Conversation()), "image": gr.State(QueryStep())}
        with gr.Row():
            with gr.Column(scale=1, min_width=290, elem_id="side"):
                _query_parts(parts, indexes[0].index.weight, config.k)
            with gr.Column(scale=3, min_width=290, elem_id="found"):
                _result_parts(parts, events, indexes)
        _wire_query(parts, events)
        _wire_steps(page, parts, events)
        for number in range(len(indexes)):
            _wire_grid(number, parts, events)
    page.queue(max_size=64, default_concurrency_limit=8)
    return page


def _models(indexes: Sequence[ServedIndex]) -> str:
    names = [str(one.index.record.model["name"]).rstrip("/").rsplit("/", 1)[-1] for one in indexes]
    labeled = [f"{one.label}: {name}" if one.label else name for one, name in zip(indexes, names, strict=True)]
    return f"Find “this image, but …”. Model: {', '.join(labeled)}"


def _query_parts(parts: dict[str, Any], weight: float | None, k: int) -> None:
    """What is searched for, and how."""
    import gradio as gr

    parts["upload"] = gr.Image(
        type="filepath", sources=["upload", "clipboard"], label="Image", elem_id="image", height=170
    )
    # Gradio would fail without a word of ours on a file that is no image
    parts["upload"].preprocess = lambda payload: None if payload is None else payload.path
    parts["panel"] = template("query", NO_IMAGE, "crumbs", elem_id="panel")
    parts["text"] = gr.Textbox(
        label="Change", placeholder="the same, but …", elem_id="text", autofocus=True, max_length=1000
    )
    with gr.Row():
        parts["go"] = gr.Button("Search", variant="primary", elem_id="go", min_width=100)
        parts["anew"] = gr.Button("New search", elem_id="anew", min_width=100)
    slider = gr.Slider(
        0, 1, value=0.5 if weight is None else weight, step=0.01, label="Weight: text ↔ image", elem_id="weight"
    )
    with gr.Accordion("More", open=False, elem_id="more"):
        fuse = gr.Checkbox(value=weight is None, label="The model combines image and text itself", elem_id="fuse")
        by = gr.Radio(BY, value=BY[0], label="Search by", elem_id="by")
        combine = gr.Radio(
            COMBINE, value="last image", label="After a result was clicked, search with", elem_id="combine"
        )
        count = gr.Slider(1, 200, value=k, step=1, label="Results", elem_id="count")
        near = gr.Checkbox(value=True, label="Show near-duplicates of the image", elem_id="near")
    # the order is that of `make_controls`
    parts["controls"] = [by, combine, slider, fuse, count, near]


def _result_parts(parts: dict[str, Any], events: PageEvents, indexes: Sequence[ServedIndex]) -> None:
    """Examples, the steps so far, and the results."""
    import gradio as gr

    examples = [
        {"number": n, "text": short(step.text, 80) or "images like this", "src": events.session.source_of(step, 64)}
        for n, step in enumerate(events.examples)
    ]
    parts["examples"] = template("examples", {"examples": examples}, "crumbs", elem_id="examples")
    parts["crumbs"] = template("crumbs", {"steps": []}, "crumbs", elem_id="crumbs")
    line = {"text": START, "error": "", "link": "", "downloads": ""}
    parts["status"] = template("status", line, elem_id="status")
    with gr.Row():
        parts["grids"] = []
        for number in range(len(indexes)):
            # two stand side by side on a phone too
            with gr.Column(min_width=150):
                blank = {"index": number, "label": "", "hits": []}
                parts["grids"].append(template("grid", blank, "grid", elem_id=f"grid{number}"))
    parts["voted"] = template("status", {**line, "text": ""}, elem_id="voted")


def _shown(parts: dict[str, Any]) -> list[Any]:
    """What a search changes, in the order of `PageEvents`."""
    return [*(parts[name] for name in ("conversation", "image", "panel", "crumbs", "status")), *parts["grids"]]


def _wire_query(parts: dict[str, Any], events: PageEvents) -> None:
    """What happens when the query or a control is changed."""
    conversation, image, text, controls = (parts[name] for name in ("conversation", "image", "text", "controls"))
    upload, slider, fuse = parts["upload"], controls[2], controls[3]
    shown = _shown(parts)

    def begin(path: str, *values: Any) -> list[Any]:
        # the panel shows it from now on
        return [None, *events.upload(path, *values)]

    def weigh(*values: Any) -> list[Any]:
        return [False, *events.again(*values[:5], False, *values[6:])]

    def anew() -> list[Any]:
        return ["", *events.again(Conversation(), QueryStep())]

    upload.upload(begin, [upload, text, *controls], [upload, *shown], **QUIET)
    for trigger in (parts["go"].click, text.submit):
        trigger(events.search, [conversation, image, text, *controls], shown, **QUIET)
    slider.input(weigh, [conversation, image, *controls], [fuse, *shown], trigger_mode="always_last", **QUIET)
    for control in (controls[0], controls[1], fuse, controls[4], controls[5]):
        control.input(events.again, [conversation, image, *controls], shown, trigger_mode="always_last", **QUIET)
    parts["anew"].click(anew, None, [text, *shown], **QUIET)
    parts["panel"].select(lambda: (QueryStep(), NO_IMAGE), None, [image, parts["panel"]], **QUIET)


def _wire_steps(page: Any, parts: dict[str, Any], events: PageEvents) -> None:
    """What happens when a step or an example is clicked, or the page is opened by a link."""
    import gradio as gr

    conversation, text, controls, shown = parts["conversation"], parts["text"], parts["controls"], _shown(parts)

    def crumb(event: gr.EventData, conversation: Conversation, *values: Any) -> list[Any]:
        return events.go_to(int(event.step), conversation, *values)

    def example(event: gr.EventData, *values: Any) -> list[Any]:
        step = events.examples[int(event.step)]
        return [step.text, *events.search(Conversation(), step, step.text, *values)]

    def on_load(request: gr.Request, *values: Any) -> list[Any]:
        link = {name: str(value) for name, value in request.query_params.items()}
        # a visitor who was quick has typed already
        return events.open_link(link, *values) if {"image", "text"} & link.keys() else [gr.skip()] * len(outputs)

    outputs = [*shown, text, *controls[2:4]]
    on_load.__annotations__["request"] = gr.Request
    parts["crumbs"].select(with_event(crumb), [conversation, *controls], [*shown, text], **QUIET)
    parts["examples"].select(with_event(example), controls, [text, *shown], **QUIET)
    page.load(on_load, controls, outputs, **QUIET)


def _wire_grid(number: int, parts: dict[str, Any], events: PageEvents) -> None:
    """What happens when a result is clicked, or voted on."""
    conversation, controls = parts["conversation"], parts["controls"]

    def pick(event: gr.EventData, conversation: Conversation, *values: Any) -> list[Any]:
        return ["", *events.pick(number, int(event.row), conversation, *values)]

    def vote(
        event: gr.EventData, conversation: Conversation, combine: str, weight: float, fuse: bool
    ) -> dict[str, Any]:
        sentence = events.vote(number, int(event.row), int(event.vote), conversation, combine, weight, fuse)
        return {"text": sentence, "error": "", "link": "", "downloads": ""}

    grid = parts["grids"][number]
    grid.select(with_event(pick), [conversation, *controls], [parts["text"], *_shown(parts)], **QUIET)
    grid.edit(with_event(vote), [conversation, *controls[1:4]], parts["voted"], **QUIET)
