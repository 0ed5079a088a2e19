"""`write_report`: a work folder becomes one HTML page that opens from disk.

The page needs nothing beside itself: no script, no font, no image from elsewhere. Every text in it comes from data
and is escaped. What surprises: it holds no date, so the same work folder gives the same page, byte for byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.leftovers import replace_file
from megapairs_hf.artifacts.workspace import ABSENT, FINISHED, Work, open_work, source_name
from megapairs_hf.core.formatting import format_value, printable_lines
from megapairs_hf.core.version import __version__
from megapairs_hf.evaluation.results_table import headline, results_tables
from megapairs_hf.report.examples import query_sheet, triplet_sheet
from megapairs_hf.report.pairs import annotated_sheet
from megapairs_hf.report.pipeline import count_tables, flow, rejections, settings
from megapairs_hf.report.plots import evaluation_curves, points, training_curve, weight_curves

if TYPE_CHECKING:
    from markupsafe import Markup

    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.report.config import ReportConfig

PAGE = "report.html"
TEMPLATE = "report.html.jinja"
ONLY_TRAINED = "none, as `megapairs eval` alone writes them, of held-out images"


def write_report(work: PathLike, out: PathLike, *, config: ReportConfig) -> Path:
    """Write the report of a pipeline, finished or not.

    Args:
        work: the work folder; what it lacks is marked as not made yet.
        out: the page, a path that ends in `.html`; any other path is a folder that gets `report.html`.
        config: how much to show.

    Returns:
        The page's path.

    Raises:
        ArtifactError: the folder holds no artifact at all, one of them cannot be read, or the page cannot be written.
    """
    html = render(open_work(work), config)
    target = Path(storage.local(out))
    if target.suffix.lower() not in {".html", ".htm"}:
        target = target / PAGE
    replace_file(target, html.encode("utf-8"))
    return target


def render(work: Work, config: ReportConfig) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    # escaping is on for every template whatever its name ends in
    loader = PackageLoader("megapairs_hf", "report/templates")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: (
            value if isinstance(value, Markup) or not isinstance(value, str) else printable_lines(value)
        ),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    slots = _slots(work, config)
    environment.filters["code"] = _with_code
    # the drawing is ours and its text is escaped; it is the only thing that goes in as it is
    slots["curve"] = Markup(slots["curve"])  # noqa: S704
    return environment.get_template(TEMPLATE).render(slots)


def _with_code(text: str) -> Markup:
    """A text as HTML, with what stands in backticks as code."""
    from markupsafe import Markup, escape

    parts = [escape(printable_lines(part)) for part in text.split("`")]
    # a last backtick without its other is a letter
    last = [] if len(parts) % 2 else [Markup("`") + parts.pop()]
    marked = [Markup("<code>{}</code>").format(part) if odd % 2 else part for odd, part in enumerate(parts)]
    return Markup("").join([*marked, *last])


def _slots(work: Work, config: ReportConfig) -> dict[str, Any]:
    corpus = work.artifacts.get("corpus")
    source = source_name(corpus) if corpus is not None else ""
    log, records = work.training_log(), work.results()
    return {
        "title": config.title or (f"MegaPairs from {source}" if source else "MegaPairs report"),
        "version": __version__,
        "source": source,
        "images": corpus.rows if corpus is not None else None,
        "stand_ins": work.stand_ins(),
        "warnings": work.warnings(),
        "verdict": work.verdict(),
        "headline": headline(records),
        "nodes": flow(work),
        "counts": count_tables(work),
        "rejections": rejections(work),
        "tables": results_tables(records),
        "curve": training_curve(log) + evaluation_curves(log) + weight_curves(records),
        "training": _training(work, log),
        "model_status": work.status("model"),
        "triplets_status": work.status("triplets"),
        "results_status": work.status("results"),
        "rankings_status": ONLY_TRAINED if records and work.status("results") == ABSENT else work.status("results"),
        "triplets": triplet_sheet(work, config.triplets, config.seed),
        "annotated": annotated_sheet(work, config.annotated, config.seed),
        "queries": query_sheet(work, config.queries, config.seed),
        "seed": config.seed,
        "settings": settings(work),
        "finished": FINISHED,
    }


def _training(work: Work, log: list[dict[str, Any]]) -> list[str]:
    """Facts beside the curve."""
    facts = []
    curve = points(log)
    if curve:
        facts.append(f"{curve[-1][0]:,} steps; loss {curve[0][1]:.3g} at the first, {curve[-1][1]:.3g} at the last")
    rates = [line["lr"] for line in log if isinstance(line.get("lr"), int | float)]
    if rates:
        facts.append(f"learning rate up to {max(rates):.2g}")
    seconds = [line["seconds"] for line in log if isinstance(line.get("seconds"), int | float)]
    if seconds:
        facts.append(f"{seconds[-1]:,.1f} s in the log at the last step")
    odd = sum("loss" in line for line in log) - len(curve)
    if odd:
        facts.append(f"{odd:,} logged losses are not finite and are not drawn")
    model = work.artifacts.get("model")
    if model is not None:
        known = {"verdict", *(("steps", "final_loss") if curve else ())}
        more = {key: value for key, value in model.manifest.stats.items() if key not in known}
        facts += [f"{key.replace('_', ' ')} {format_value(value)}" for key, value in more.items()]
    return facts
