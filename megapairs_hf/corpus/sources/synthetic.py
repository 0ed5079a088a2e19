"""The synthetic scenes as a source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from megapairs_hf.core.errors import CorpusError
from megapairs_hf.corpus.sources.base import ITEMS, RawRow, short_hash
from megapairs_hf.corpus.synthetic.rendering import draw_scene
from megapairs_hf.corpus.synthetic.scenes import make_scene, scene_name
from megapairs_hf.images.decode import encode_image

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from megapairs_hf.corpus.synthetic.scenes import ScenesConfig


class SceneSource:
    """The synthetic scenes."""

    captioned = True
    meta = pa.struct([(name, pa.string()) for name in ("scene", "edit_of", "edit", "attribute")])

    def __init__(self, config: ScenesConfig, indices: Sequence[int] | None = None) -> None:
        self.config = config
        self.indices = range(config.count) if indices is None else indices
        self.rows = len(self.indices)
        self.fingerprint = short_hash("scenes", config.seed, config.size, config.family, self.rows)

    def read(self, start: int, stop: int) -> Iterator[RawRow]:
        """Render scenes."""
        for i in self.indices[start:stop]:
            member = make_scene(self.config, i)
            meta = {
                "scene": member.scene.key(),
                "edit_of": member.edit_of,
                "edit": member.edit,
                "attribute": member.attribute,
            }
            yield RawRow(member.name, encode_image(draw_scene(self.config, i)), (member.scene.caption(),), meta)

    def groups(self, column: str) -> list[str]:
        """The family of every scene; the only column that can hold scenes out."""
        if column != "family":
            raise CorpusError(f"synthetic scenes are held out by `group_column: family`, not {column!r}")
        return [scene_name(self.config.seed, i // self.config.family) for i in self.indices]

    def files(self) -> None:
        """There are none."""

    def items(self) -> pa.Table:
        """Nothing is known of single rows."""
        return ITEMS.empty_table()

    def select(self, indices: Sequence[int]) -> SceneSource:
        """Only these scenes."""
        return SceneSource(self.config, [self.indices[i] for i in indices])
