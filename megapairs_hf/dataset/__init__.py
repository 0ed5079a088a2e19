"""The data set: built from instructions and pairs, or brought in the released format, and read back row by row."""

from typing import TYPE_CHECKING

from megapairs_hf.core import lazy

if TYPE_CHECKING:
    from megapairs_hf.dataset.config import BuildConfig, ImportConfig
    from megapairs_hf.dataset.join import JoinTriplets
    from megapairs_hf.dataset.load import load_triplets
    from megapairs_hf.dataset.megapairs_format.exporter import export_megapairs
    from megapairs_hf.dataset.megapairs_format.importer import import_megapairs
    from megapairs_hf.dataset.save import save_triplets
    from megapairs_hf.dataset.split import split_pairs
    from megapairs_hf.dataset.stage import build_triplets
    from megapairs_hf.dataset.triplets import Triplets
    from megapairs_hf.dataset.views import training_view
else:
    __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "config": ["BuildConfig", "ImportConfig"],
            "join": ["JoinTriplets"],
            "load": ["load_triplets"],
            "megapairs_format.exporter": ["export_megapairs"],
            "megapairs_format.importer": ["import_megapairs"],
            "save": ["save_triplets"],
            "split": ["split_pairs"],
            "stage": ["build_triplets"],
            "triplets": ["Triplets"],
            "views": ["training_view"],
        },
    )

__all__ = [
    "BuildConfig",
    "ImportConfig",
    "JoinTriplets",
    "Triplets",
    "build_triplets",
    "export_megapairs",
    "import_megapairs",
    "load_triplets",
    "save_triplets",
    "split_pairs",
    "training_view",
]
