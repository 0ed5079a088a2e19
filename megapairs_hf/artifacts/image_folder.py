"""A folder of images as a corpus that was never made: by path, undecoded, without captions.

For pairs of one's own (`megapairs describe --pairs pairs.csv --images photos/`). What surprises: nothing is checked
here, so an image that cannot be read is a rejected row of the stage that needs it; `megapairs corpus` checks all of
them first, and reads captions.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf.core.schema import IMAGE, IMAGE_ID

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})


def list_images(root: Path) -> list[str]:
    """Paths of the images below a folder, relative to it, in the order of the names' bytes; none where it is none."""
    images: set[str] = set()
    for folder, _, names in os.walk(root):
        inside = Path(folder).relative_to(root)
        images.update((inside / name).as_posix() for name in names if Path(name).suffix.lower() in SUFFIXES)
    return sorted(images, key=os.fsencode)


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
        state = (root / name).stat()
        digest.update(json.dumps([name, state.st_size, state.st_mtime_ns]).encode())
        ids.append(name)
        paths.append(str((root / name).resolve()))
    features = Features({IMAGE_ID: Value("string"), IMAGE: Image()})
    return Dataset.from_dict({IMAGE_ID: ids, IMAGE: paths}, features=features), digest.hexdigest()[:16]
