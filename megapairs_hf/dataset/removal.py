"""Images taken out of a finished data set, because somebody asked for it.

Only the shards that hold or name such an image are written again. New files are made under `.removal/` first and
renamed in one go, the manifest last, so that a removal that was killed has either not happened or is completed by the
next one. What surprises: the record of the removal holds hashes of the ids, since an id may be what was to vanish.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import (
    MANIFEST,
    REJECTED_FILE,
    Artifact,
    Manifest,
    json_bytes,
    open_artifact,
    read_json,
    table_bytes,
)
from megapairs_hf.artifacts.shards import part_shards
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.artifacts.writer import acquire, rejection_table, release
from megapairs_hf.core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable

STAGED = ".removal"
ORDER = "order.json"
CARD = "README.md"
NAMED = 5
MARK = re.compile(r"^(\s*description: )[0-9a-f]{16}$", re.MULTILINE)
SHOWN = ("query_image", "target_image", "negative_image")


@dataclass
class _Removal:
    """What is being taken out, and what was found so far."""

    artifact: Artifact
    ids: frozenset[str]
    min_negatives: int
    contents: set[str] = field(default_factory=set)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    sides: Counter[str] = field(default_factory=Counter)
    relations: Counter[str] = field(default_factory=Counter)
    rejected: list[tuple[str, str, str]] = field(default_factory=list)
    negatives: int = 0

    def stage(self, shard: dict[str, Any], table: pa.Table) -> None:
        """Keep a new shard beside the old one."""
        digest = storage.write_bytes(join(self.artifact.path, STAGED, shard["file"]), table_bytes(table))
        self.records[shard["file"]] = {**shard, "rows": len(table), "sha256": digest}


def remove_images(
    path: PathLike, ids: Iterable[str], *, ignore_missing: bool = False, min_negatives: int | None = None
) -> Artifact:
    """Take images out of a data set of triplets.

    Triplets whose query or target is taken out go; from the others the hard negative goes, and those that are left
    with too few go too.

    Args:
        path: the `triplets` artifact.
        ids: image ids.
        ignore_missing: pass over ids that the data set does not have.
        min_negatives: fewest hard negatives of a triplet, the query image counted; None takes what it was built with.

    Returns:
        The artifact as it is now.

    Raises:
        ArtifactError: an id is unknown, the folder is not local, or another run writes there.
    """
    if not storage.is_local(path):
        raise ArtifactError(f"{path} must be a local folder; copy the data set to this machine first")
    open_artifact(path, "triplets")
    lock = acquire(path)
    try:
        completed = _complete(path)
        storage.remove(join(path, STAGED))
        artifact = open_artifact(path, "triplets")
        # the same command after a kill finds its ids gone already
        done = set(artifact.manifest.stats["removals"][-1]["sha256_of_ids"]) if completed else set()
        asked = [name for name in dict.fromkeys(ids) if _hashed(name.encode()) not in done]
        wanted = _known(artifact, asked, ignore_missing)
        if wanted:
            built = int(artifact.manifest.config.get("min_negatives", 1))
            removal = _Removal(artifact, frozenset(wanted), built if min_negatives is None else min_negatives)
            _stage_all(removal)
            _complete(path)
    finally:
        release(lock)
    return open_artifact(path, "triplets")


def _known(artifact: Artifact, ids: list[str], ignore_missing: bool) -> list[str]:
    """The ids that the data set has."""
    held: set[str] = set()
    for index, _ in part_shards(artifact, "images"):
        held.update(artifact.shard(index, ["image_id"])["image_id"].to_pylist())
    unknown = [name for name in ids if name not in held]
    if unknown and not ignore_missing:
        more = f", and {len(unknown) - NAMED:,} more" if len(unknown) > NAMED else ""
        raise ArtifactError(
            f"{artifact.path} has no image {', '.join(map(repr, unknown[:NAMED]))}{more}; correct the ids, or pass"
            " --ignore-missing"
        )
    return [name for name in ids if name in held]


def _stage_all(removal: _Removal) -> None:
    for part, stage in (("images", _stage_images), ("triplets", _stage_triplets), ("preview", _stage_preview)):
        for index, shard in part_shards(removal.artifact, part):
            stage(removal, index, shard)
    artifact = removal.artifact
    rejected, manifest = _rejected(removal), artifact.manifest
    shards = [removal.records.get(str(shard["file"]), shard) for shard in manifest.shards]
    changed = Manifest(
        **{
            **manifest.__dict__,
            "shards": shards,
            "rows": sum(int(shard["rows"]) for shard in shards),
            "rejected": dict(sorted(Counter(rejected["reason"].to_pylist()).items())),
            "stats": _stats(removal),
        }
    )
    storage.write_bytes(join(artifact.path, STAGED, REJECTED_FILE), table_bytes(rejected))
    told = asdict(changed) | {"fingerprint": changed.fingerprint}
    storage.write_bytes(join(artifact.path, STAGED, MANIFEST), json_bytes(told))
    files = [*removal.records, REJECTED_FILE]
    card = join(artifact.path, CARD)
    if storage.exists(card):
        text = without_empty(storage.read_bytes(card).decode("utf-8"), shards)
        storage.write_bytes(join(artifact.path, STAGED, CARD), marked(text, changed.fingerprint).encode())
        files.append(CARD)
    # written last: without it nothing has happened, with it everything will
    storage.write_bytes(join(artifact.path, STAGED, ORDER), json_bytes({"files": [*files, MANIFEST]}))


def _complete(path: PathLike) -> bool:
    """Put the staged files of a removal into their places; whether there was one."""
    order = join(path, STAGED, ORDER)
    if not storage.exists(order):
        return False
    for name in read_json(order)["files"]:
        staged = storage.local(join(path, STAGED, name))
        if staged.exists():
            with storage.explained(path):
                staged.replace(storage.local(join(path, name)))
                storage.sync_folder(storage.local(join(path, name)).parent)
    storage.remove(join(path, STAGED))
    return True


def _stage_images(removal: _Removal, index: int, shard: dict[str, Any]) -> None:
    ids = removal.artifact.shard(index, ["image_id"])["image_id"]
    gone = pc.is_in(ids, pa.array(sorted(removal.ids)))
    if pc.any(gone).as_py():
        table = removal.artifact.shard(index)
        for cell in table.filter(gone)["image"].to_pylist():
            removal.contents.add(_hashed(cell["bytes"] or b""))
        removal.stage(shard, table.filter(pc.invert(gone)))


def _stage_triplets(removal: _Removal, index: int, shard: dict[str, Any]) -> None:
    table = removal.artifact.shard(index)
    names = pa.array(sorted(removal.ids))
    named = [table["q_img"], table["t_img"], pc.list_flatten(table["hns"])]
    if not any(pc.any(pc.is_in(column, names)).as_py() for column in named):
        return
    side = str(shard["file"]).rsplit("/", 1)[-1].split("-", 1)[0]
    kept = []
    for row in table.to_pylist():
        negatives = [name for name in row["hns"] if name not in removal.ids]
        ends = {row["q_img"], row["t_img"]} & removal.ids
        key = f"{row['q_img']} -> {row['t_img']}"
        if ends or len(negatives) < removal.min_negatives:
            reason = "removed_on_request" if ends else "too_few_negatives"
            removal.rejected.append((_secret(key) if ends else key, reason, "" if ends else "after a removal"))
            removal.sides[side] += 1
            removal.relations.update(row["relation"])
        else:
            removal.negatives += len(row["hns"]) - len(negatives)
            kept.append({**row, "hns": negatives})
    removal.stage(shard, pa.Table.from_pylist(kept, schema=table.schema))


def _stage_preview(removal: _Removal, index: int, shard: dict[str, Any]) -> None:
    # these rows hold images and no ids
    table = removal.artifact.shard(index)
    columns = [name for name in SHOWN if name in table.column_names]
    kept = [
        all(_hashed((cell or {}).get("bytes") or b"") not in removal.contents for cell in cells)
        for cells in zip(*(table[name].to_pylist() for name in columns), strict=True)
    ]
    if not all(kept):
        removal.stage(shard, table.filter(pa.array(kept)))


def _rejected(removal: _Removal) -> pa.Table:
    """What was left out before, without the names of what is now taken out, and what is left out now."""
    rows: list[tuple[str, str, str]] = []
    named = re.compile("|".join(map(re.escape, sorted(removal.ids))))
    for row in removal.artifact.rejected().to_pylist():
        hides = named.search(row["key"]) is not None and _names(row["key"], removal.ids)
        # a detail is a sentence: what an id stands in is left out whole
        detail = "" if hides or named.search(row["detail"] or "") else row["detail"] or ""
        rows.append((_secret(row["key"]) if hides else row["key"], row["reason"], detail))
    rows += [(_secret(name), "removed_on_request", "an image") for name in sorted(removal.ids)]
    return rejection_table([*rows, *removal.rejected])


def _names(key: str, ids: frozenset[str]) -> bool:
    """Whether the key of a rejection is one of the ids, or a pair with one of them."""
    places = [found.start() for found in re.finditer(" -> ", key)]
    return any(end in ids for place in places for end in (key[:place], key[place + 4 :])) or key in ids


def _stats(removal: _Removal) -> dict[str, Any]:
    stats = dict(removal.artifact.manifest.stats)
    for name, fewer in (("triplets", removal.sides), ("relations", removal.relations)):
        if isinstance(stats.get(name), dict):
            stats[name] = {key: count - fewer[key] for key, count in stats[name].items()}
    told = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "images": len(removal.ids),
        "triplets": sum(removal.sides.values()),
        "hard_negatives": removal.negatives,
        "sha256_of_ids": sorted(_hashed(name.encode()) for name in removal.ids),
    }
    return {**stats, "removals": [*stats.get("removals", []), told]}


def marked(readme: str, mark: str) -> str:
    """A README whose configurations carry another mark, because `datasets` keys its cache by that text."""
    import yaml

    if MARK.search(readme):
        return MARK.sub(rf"\g<1>{mark}", readme)
    _, front, body = readme.split("---\n", 2)
    data = yaml.safe_load(front)
    for config in data.get("configs", []):
        config["description"] = mark
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n{body}"


def without_empty(readme: str, shards: Iterable[dict[str, Any]]) -> str:
    """A README that lists no split without rows, since `datasets` opens no configuration that has one."""
    import yaml

    rows: Counter[tuple[str, str]] = Counter()
    for shard in shards:
        part, _, name = str(shard["file"]).rpartition("/")
        rows[part, name.split("-", 1)[0]] += int(shard["rows"])
    if all(rows.values()):
        return readme
    _, front, body = readme.split("---\n", 2)
    data = yaml.safe_load(front)
    for config in data.get("configs", []):
        part = config["config_name"]
        # a split that no shard is named after is not ours to judge
        config["data_files"] = [one for one in config["data_files"] if rows.get((part, one["split"])) != 0]
    data["configs"] = [config for config in data.get("configs", []) if config["data_files"]]
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n{body}"


def read_ids(told: str) -> list[str]:
    """Ids from a command line: `a,b`, or `@file` with one a line.

    Raises:
        ArtifactError: the file cannot be read, or there is no id.
    """
    if told.startswith("@"):
        # an id may begin or end with a space, and hold what `splitlines` takes for the end of a line
        found = [name.rstrip("\r") for name in storage.read_bytes(told[1:]).decode("utf-8").split("\n")]
    else:
        found = [name.strip() for name in told.split(",")]
    found = [name for name in found if name]
    if not found:
        raise ArtifactError(f"{told!r} names no image; give ids as a,b or @file with one a line")
    return found


def _hashed(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _secret(key: str) -> str:
    return f"sha256:{_hashed(key.encode())}"
