"""Which ranking rule a record was made by, where it is not the published one: such numbers get a label everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# whether the published protocol deletes the reference from the ranking
REMOVED = {"circo": False, "cirr": True, "fashioniq": False, "genecis": False}


def caveats(record: Mapping[str, Any]) -> list[str]:
    """Why a record does not compare with the published numbers; empty where it does."""
    partial = (record.get("options") or {}).get("partial")
    rule = rule_of(record)
    return ([rule] if rule else []) + ([f"partial: {partial}"] if partial else [])


def rule_of(record: Mapping[str, Any]) -> str:
    """By which rule other than the published one a record was ranked; empty for the published one."""
    options = record.get("options") or {}
    rules = []
    if options.get("gallery") == "union":
        rules.append("union gallery, easier")
    removed = options.get("remove_reference")
    if record["benchmark"] in REMOVED and removed is not None and bool(removed) != REMOVED[record["benchmark"]]:
        rules.append("reference removed" if removed else "reference kept")
    return ", ".join(rules)
