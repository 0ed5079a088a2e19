"""A folder of images as a corpus that was never made: by path, undecoded, without captions.

For pairs of one's own (`megapairs describe --pairs pairs.csv --images photos/`). What surprises: nothing is checked
here, so an image that cannot be read is a rejected row of the stage that needs it; `megapairs corpus` checks all of
them first, and reads captions.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf.core.image_formats import APPLE_DOUBLE, OF_MACOS, is_image_name
from megapairs_hf.core.image_paths import file_state, leads_inside, link_outside, safe_name
from megapairs_hf.core.schema import IMAGE, IMAGE_ID

if TYPE_CHECKING:
    from datasets import Dataset

    from megapairs_hf.core.image_paths import Problem

TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx")
# COCO's captions, and the files of Karpathy's division of COCO and Flickr
CAPTION_FILE = re.compile(r"(captions|dataset)([_.-].*)?\.json", re.IGNORECASE)
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "metadata.json")


@dataclass
class FolderListing:
    """What a folder with its subfolders holds, as paths relative to it.

    Attributes:
        images: files with the suffix of an image, in the order of the names' bytes.
        texts: side-car texts, by their paths without the suffix.
        metadata: tables with columns of the images.
        captions: files of captions that have names of their own.
        tables: other tables directly in the folder.
        problems: subfolders and links that were not followed or cannot be read, with a reason and its detail.
    """

    images: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    metadata: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    problems: dict[str, Problem] = field(default_factory=dict)


def is_caption_file(name: str) -> bool:
    """Whether a file has a name by which captions are published."""
    return CAPTION_FILE.fullmatch(name) is not None


def list_images(root: Path) -> list[str]:
    """Paths of the images below a folder, relative to it, in the order of the names' bytes; none where it is none."""
    return list_folder(root).images if root.is_dir() else []


def list_folder(root: Path, follow_links: bool = False) -> FolderListing:
    """Everything below a folder that a corpus is made of.

    Args:
        root: the folder.
        follow_links: walk also folders outside, to which links lead.
    """
    walk = _Walk(root, follow_links)
    walk.run()
    # by code points, which is the order of the names' bytes
    for names in (walk.listing.images, walk.listing.metadata, walk.listing.captions):
        names.sort()
    return walk.listing


class _Walk:
    """A walk through a folder that visits no folder twice, so that links in a circle end it.

    A link into the folder leads to what is there by its own name, so the folders come before the links.
    """

    def __init__(self, root: Path, follow_links: bool) -> None:
        self.root, self.follow_links = root, follow_links
        self.listing = FolderListing()
        self.folders, self.links = [""], list[str]()

    def run(self) -> None:
        walked: set[str] = set()
        while self.folders or self.links:
            inside = self.folders.pop() if self.folders else self.links.pop()
            real = os.path.realpath(self.root / inside)
            if real not in walked:
                walked.add(real)
                for entry in self._entries(inside):
                    name = f"{inside}/{entry.name}" if inside else entry.name
                    if not self._is_folder(entry, name):
                        self._sort_in(entry, name)

    def _entries(self, inside: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / inside) as entries:
                return sorted(entries, key=attrgetter("name"), reverse=True)
        except OSError as error:
            name = inside or "."
            self.listing.problems[name] = ("unreadable_folder", f"{safe_name(name)}: {error.strerror}")
            return []

    def _is_folder(self, entry: os.DirEntry[str], name: str) -> bool:
        """Whether an entry is a folder, which is walked later, or rejected where a link leads out."""
        try:
            if not entry.is_dir():
                return False
            problem = self._link_problem(name) if entry.is_symlink() else None
        except OSError:  # links in a circle
            return False
        if problem is not None:
            self.listing.problems[name] = problem
        else:
            (self.links if entry.is_symlink() else self.folders).append(name)
        return True

    def _link_problem(self, name: str) -> Problem | None:
        target = Path(os.path.realpath(self.root / name))
        if self.root.resolve().is_relative_to(target):
            return "link_loop", f"{safe_name(name)} is a link to the folder that it is in"
        if self.follow_links or leads_inside(target, (self.root,)):
            return None
        return link_outside(safe_name(name))

    def _sort_in(self, entry: os.DirEntry[str], name: str) -> None:
        """Put a file where it belongs: an image, a text or a table."""
        if is_image_name(entry.name):
            if _is_of_macos(entry):
                # before it is missed that such an image has no caption
                self.listing.problems[name] = ("not_an_image", f"{safe_name(name)} is {OF_MACOS}")
            else:
                self.listing.images.append(name)
            return
        stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a name may be no valid text
        if suffix.lower() == ".txt":
            # of photo.txt and photo.TXT the first is read
            self.listing.texts[stem] = name if suffix == ".txt" else self.listing.texts.get(stem, name)
        elif entry.name in METADATA:
            self.listing.metadata.append(name)
        elif is_caption_file(entry.name):
            self.listing.captions.append(name)
        elif not suffix and entry.is_symlink() and not os.path.exists(entry):  # noqa: PTH110
            # it may have been a folder of images
            self.listing.problems[name] = ("unreadable_file", f"{safe_name(name)} is a link that leads nowhere")
        elif name == entry.name and suffix.lower() in TABLE_SUFFIXES:
            self.listing.tables.append(name)


def _is_of_macos(entry: os.DirEntry[str]) -> bool:
    try:
        if not entry.name.startswith("._") or entry.is_symlink() or not entry.is_file():
            return False
        with Path(entry.path).open("rb") as file:
            return file.read(len(APPLE_DOUBLE)) == APPLE_DOUBLE
    except OSError:  # the reader says what is wrong with it
        return False


def image_rows(root: Path, names: list[str]) -> tuple[Dataset, str]:
    """Images by their relative paths, and a fingerprint of names, sizes and times of change.

    Args:
        root: the folder.
        names: of `list_images`; one that is not UTF-8 is left out, since no table can name it.
    """
    from datasets import Dataset, Features, Image, Value

    digest = hashlib.sha256()
    ids, paths = [], []
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            continue
        digest.update(json.dumps([name, *file_state(root / name)]).encode())
        ids.append(name)
        # as it is written: the reader says what is wrong with a link
        paths.append(os.path.abspath(root / name))  # noqa: PTH100
    features = Features({IMAGE_ID: Value("string"), IMAGE: Image()})
    return Dataset.from_dict({IMAGE_ID: ids, IMAGE: paths}, features=features), digest.hexdigest()[:16]
