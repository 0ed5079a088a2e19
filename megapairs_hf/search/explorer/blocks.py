"""The explorer in Gradio: what is on the page, and what happens when something is changed.

All logic is in `session.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import MegaPairsError
from megapairs_hf.search.explorer.filters import ANY, ORDERS, PASS_RATE, SAMPLE, Filter
from megapairs_hf.search.explorer.table import VERIFIED
from megapairs_hf.search.page.parts import template, with_event

if TYPE_CHECKING:
    from megapairs_hf.search.explorer.session import ExplorerSession
    from megapairs_hf.search.explorer.table import ExplorerTable

PACKAGE = "megapairs_hf.search.explorer"
ALL = "all"
BLANK = {"text": "", "error": "", "marks": 0}


def make_filter(*values: Any) -> Filter:
    """The controls' values; whatever a client sends that the page does not offer is the default."""
    split, relation, score, low, high, reason, word, order, seed = values
    return Filter(
        split=_chosen(split),
        relation=_chosen(relation),
        score=str(score or ANY),
        low=_number(low),
        high=_number(high),
        reason=_chosen(reason),
        word=str(word or "").strip()[:200],
        order=next((one for one in ORDERS if one == order), ORDERS[0]),
        seed=abs(int(_number(seed) or 0)),
    )


def _chosen(value: Any) -> str:
    return "" if value in {None, ALL} else str(value).partition(" (")[0]


def _number(value: Any) -> float | None:
    """A number, however it was written; None where it is none."""
    try:
        number = float(str(value).replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def make_page(session: ExplorerSession) -> Any:
    """The page."""
    import gradio as gr

    first = session.explored.tables[0]
    with gr.Blocks(title=f"explore {session.explored.name}", analytics_enabled=False) as page:
        template("head", {"title": session.explored.name}, package=PACKAGE)
        with gr.Row():
            table = gr.Dropdown(list(session.tables), value=first.name, label="Table", elem_id="table", min_width=160)
            word = gr.Textbox(label="Word", placeholder="in any text or id", elem_id="word", max_length=200,
                              min_width=160)  # fmt: skip
            order = gr.Dropdown(list(ORDERS), value=ORDERS[0], label="Order", elem_id="order", min_width=160)
            seed = gr.Number(0, label="Seed of the sample", precision=0, elem_id="seed", visible=False, min_width=120)
        filters = _filters(gr, first)
        chosen = [*filters, word, order, seed]
        with gr.Row(elem_id="pager"):
            back = gr.Button("Previous", elem_id="back", min_width=80)
            number = gr.Number(1, label="Page", precision=0, minimum=1, elem_id="page", min_width=80)
            onward = gr.Button("Next", elem_id="onward", min_width=80)
        status = template("status", BLANK, package=PACKAGE, elem_id="status")
        rows = template("rows", {"rows": []}, "rows", package=PACKAGE, elem_id="rows")
        marked = template("status", BLANK, package=PACKAGE, elem_id="marked")
        _wire(gr, page, session, locals())
    page.queue(max_size=64, default_concurrency_limit=4)
    return page


def _filters(gr: Any, table: ExplorerTable) -> list[Any]:
    """The controls that depend on the table; the order is that of `make_filter`."""
    with gr.Row():
        split = gr.Dropdown(label="Split", elem_id="split", min_width=120, **_splits(table))
        relation = gr.Dropdown(label="Relation", elem_id="relation", min_width=140, **_relations(table))
        score = gr.Dropdown(label="Score", elem_id="score", min_width=140, **_scores(table))
        # a number field of Gradio that is empty is 0
        limits = {"min_width": 100, "max_length": 20, "visible": table.has_scores}
        low = gr.Textbox(label="Score from", placeholder="any", elem_id="low", **limits)
        high = gr.Textbox(label="Score to", placeholder="any", elem_id="high", **limits)
        reason = gr.Dropdown(label="Reason", elem_id="reason", min_width=180, **_reasons(table))
    return [split, relation, score, low, high, reason]


def _splits(table: ExplorerTable) -> dict[str, Any]:
    return {"choices": [ALL, *table.splits], "value": ALL, "visible": len(table.splits) > 1}


def _relations(table: ExplorerTable) -> dict[str, Any]:
    return {"choices": [ALL, *table.relations], "value": ALL, "visible": bool(table.relations)}


def _scores(table: ExplorerTable) -> dict[str, Any]:
    rates = [PASS_RATE] if VERIFIED in table.rows.schema.names else []
    return {"choices": [ANY, *table.relations, *rates], "value": ANY, "visible": table.has_scores}


def _reasons(table: ExplorerTable) -> dict[str, Any]:
    choices = [f"{reason} ({count:,})" for reason, count in table.reasons.items()]
    return {"choices": [ALL, *choices], "value": ALL, "visible": bool(table.reasons)}


def _wire(gr: Any, page: Any, session: ExplorerSession, parts: dict[str, Any]) -> None:
    """What happens when something is changed."""
    table, chosen, number = parts["table"], parts["chosen"], parts["number"]
    inputs, outputs = [table, number, *chosen], [parts["rows"], parts["status"], number]
    quiet = {"show_progress": "minimal", "api_visibility": "private"}

    def show(name: str, page_number: float | None, *values: Any) -> list[Any]:
        shown = session.show(str(name), make_filter(*values), int(page_number or 1))
        return [shown.rows, shown.status, shown.page]

    def first(name: str, _: Any, *values: Any) -> list[Any]:
        return show(name, 1, *values)

    def turned(step: int) -> Any:
        return lambda name, page_number, *values: show(name, int(page_number or 1) + step, *values)

    def other(name: str) -> list[Any]:
        one = session.tables.get(str(name), session.explored.tables[0])
        scored = {"value": "", "visible": one.has_scores}
        updates = [_splits(one), _relations(one), _scores(one), scored, scored, _reasons(one)]
        return [gr.update(**update) for update in updates]

    def mark(event: gr.EventData, name: str) -> dict[str, Any]:
        try:
            sentence = session.mark(str(name), int(event.row), int(event.slot), str(event.mark), str(event.edited))
        except (MegaPairsError, ValueError) as error:
            return {**BLANK, "error": str(error)}
        return {"text": sentence, "error": "", "marks": len(session.marks)}

    table.input(other, table, chosen[:6], **quiet).then(first, inputs, outputs, **quiet)
    for control in chosen:
        typed = isinstance(control, gr.Number | gr.Textbox)
        (control.submit if typed else control.input)(first, inputs, outputs, **quiet)
    parts["order"].input(lambda order: gr.update(visible=order == SAMPLE), parts["order"], parts["seed"], **quiet)
    number.submit(show, inputs, outputs, **quiet)
    parts["back"].click(turned(-1), inputs, outputs, **quiet)
    parts["onward"].click(turned(1), inputs, outputs, **quiet)
    parts["rows"].edit(with_event(mark), table, parts["marked"], **quiet)
    page.load(show, inputs, outputs, **quiet)
