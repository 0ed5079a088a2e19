"""Search: an index of images, and what is found for an image, a text, or both ("this image, but …").

index = SearchIndex.build("BAAI/BGE-VL-base", "photos", "photos.index")
for hit in index.query(image="room.jpg", text="the same room at night", k=10):
    print(hit.image_id, hit.score)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megapairs_hf.search.config import SearchConfig
    from megapairs_hf.search.index import SearchIndex
    from megapairs_hf.search.results import Hit, SearchResults
else:
    from megapairs_hf.core.lazy import exports

    __getattr__, __dir__ = exports(
        __name__, {"config": ["SearchConfig"], "index": ["SearchIndex"], "results": ["Hit", "SearchResults"]}
    )

__all__ = ["Hit", "SearchConfig", "SearchIndex", "SearchResults"]
