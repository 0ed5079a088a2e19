"""Composed-image-retrieval data from any captioned image corpus, and retrievers trained on it.

From images to triplets, row by row with `datasets`:

    ds = load_dataset("imagefolder", data_dir="photos", split="train")
    ds = add_columns(ds, CheckImages(root="photos"))
    ds = add_columns(ds, EmbedImages("facebook/dinov2-large", column="dino_image"))
    ds = drop_duplicates(drop_errors(ds))
    pairs = split_pairs(mine(ds, relations=["dino_image"]))
    pairs = pairs.map(Describe(images=ds, urls=[url], model=vlm), batched=True)
    pairs = pairs.map(Instruct(urls=[url], model=llm), batched=True)
    triplets = Triplets(drop_errors(pairs.map(JoinTriplets(), batched=True)), images=ds)
    push(triplets, "you/your-pairs")

Row functions, for `add_columns(ds, function)` or `ds.map(function, batched=True)`; a bad row gets an `error`:

    CheckImages     ids, sizes and hashes of images; which of them can be used
    Caption         a caption of each image, by a vision-language model
    EmbedImages     unit embeddings of images, under any encoder
    EmbedTexts      unit embeddings of captions
    Describe        what the two images of a pair share and how they differ (MegaPairs, section 3.1)
    Instruct        search instructions from a description
    Verify          whether an instruction leads to its target rather than to the hard negatives
    JoinTriplets    the columns of the published data set

Steps that look at all rows:

    add_columns     the columns of a row function, without copying the images
    drop_errors     leave out the rows with an error, and count them by reason
    drop_duplicates leave out repeated ids and exact duplicates
    mine            related pairs and their hard negatives
    hard_negatives  hard negatives for queries and positives of any kind
    split_pairs     train and validation splits that share no image

Use:

    Triplets        triplets with their images; `load_triplets(path_or_repo)` reads them
    load_mmret      a retriever, as a plain SentenceTransformer
    train           an MMRet on triplets
    evaluate        CIRCO, CIRR, FashionIQ, GeneCIS, MMEB, or images of your own
    SearchIndex     images that are found by an image, a text, or both
    push            a data set, a model or results to the Hub, with their card
    open_artifact   a folder that a stage of the command line made; `.dataset()` of it

The command `megapairs` runs the same over millions of images, resumable: `megapairs --help`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megapairs_hf.core import lazy
from megapairs_hf.core.version import __version__ as __version__

if TYPE_CHECKING:
    from megapairs_hf.annotation.caption import Caption
    from megapairs_hf.annotation.describe import Describe
    from megapairs_hf.annotation.instruct import Instruct
    from megapairs_hf.annotation.verify import Verify
    from megapairs_hf.artifacts.artifact import open_artifact
    from megapairs_hf.core.columns import add_columns, drop_duplicates, drop_errors
    from megapairs_hf.corpus.check import CheckImages
    from megapairs_hf.dataset.join import JoinTriplets
    from megapairs_hf.dataset.load import load_triplets
    from megapairs_hf.dataset.split import split_pairs
    from megapairs_hf.dataset.triplets import Triplets
    from megapairs_hf.embedding.embed import EmbedImages, EmbedTexts
    from megapairs_hf.evaluation import evaluate
    from megapairs_hf.hub.upload import push
    from megapairs_hf.mining.negatives import hard_negatives
    from megapairs_hf.mining.pairs import mine
    from megapairs_hf.models import load_mmret
    from megapairs_hf.search.index import SearchIndex
    from megapairs_hf.training.stage import train
else:
    __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "annotation.caption": ["Caption"],
            "annotation.describe": ["Describe"],
            "annotation.instruct": ["Instruct"],
            "annotation.verify": ["Verify"],
            "artifacts.artifact": ["open_artifact"],
            "core.columns": ["add_columns", "drop_duplicates", "drop_errors"],
            "corpus.check": ["CheckImages"],
            "dataset.join": ["JoinTriplets"],
            "dataset.load": ["load_triplets"],
            "dataset.split": ["split_pairs"],
            "dataset.triplets": ["Triplets"],
            "embedding.embed": ["EmbedImages", "EmbedTexts"],
            "evaluation": ["evaluate"],
            "hub.upload": ["push"],
            "mining.negatives": ["hard_negatives"],
            "mining.pairs": ["mine"],
            "models": ["load_mmret"],
            "search.index": ["SearchIndex"],
            "training.stage": ["train"],
        },
    )

__all__ = [
    "Caption",
    "CheckImages",
    "Describe",
    "EmbedImages",
    "EmbedTexts",
    "Instruct",
    "JoinTriplets",
    "SearchIndex",
    "Triplets",
    "Verify",
    "add_columns",
    "drop_duplicates",
    "drop_errors",
    "evaluate",
    "hard_negatives",
    "load_mmret",
    "load_triplets",
    "mine",
    "open_artifact",
    "push",
    "split_pairs",
    "train",
]
