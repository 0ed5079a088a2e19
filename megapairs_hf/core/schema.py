"""The columns of every artifact kind, as Arrow schemas, and the names of the columns.

What crosses from one stage to the next is exactly this. `SCHEMA_VERSION` goes up when a column changes its name, type
or meaning, and an artifact of another version is refused with a sentence instead of being misread.
"""

from __future__ import annotations

import json

import pyarrow as pa

SCHEMA_VERSION = 2

IMAGE_ID = "image_id"
IMAGE = "image"
CAPTION = "caption"
CAPTIONS = "captions"
META = "meta"
EMBEDDING = "embedding"
QUERY_ID = "query_id"
TARGET_ID = "target_id"
RELATION = "relation"
SCORES = "scores"
NEGATIVE_IDS = "negative_ids"
CANDIDATE_IDS = "candidate_ids"
CANDIDATE_SCORES = "candidate_scores"

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

REJECTED = pa.schema(
    [
        ("key", pa.string()),  # the row's id, or `query_id -> target_id`
        ("reason", pa.string()),  # a short word, counted in the manifest
        ("detail", pa.string()),  # what exactly was found; the raw reply where a model gave one
    ]
)

PAIR_KEY = [(QUERY_ID, pa.string()), (TARGET_ID, pa.string())]

PAIRS = pa.schema(
    [
        *PAIR_KEY,
        ("query_row", pa.int64()),  # rows of the corpus are hints: a reader checks the id there
        ("target_row", pa.int64()),
        (RELATION, pa.list_(pa.string())),
        (SCORES, pa.list_(pa.struct([("relation", pa.string()), ("score", pa.float32())]))),
        (NEGATIVE_IDS, pa.list_(pa.string())),
        ("negative_rows", pa.list_(pa.int64())),
        ("query_cluster", pa.int64()),  # the row of the first image of its near-duplicate cluster; alone: its own
        ("target_cluster", pa.int64()),
        ("negative_clusters", pa.list_(pa.int64())),
    ]
)

DESCRIPTIONS = pa.schema(
    [
        *PAIR_KEY,
        ("description", pa.string()),
        ("word_num", pa.int32()),
        ("raw", pa.string()),
        ("model", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
    ]
)

CAPTIONS_TABLE = pa.schema(
    [
        (IMAGE_ID, pa.string()),
        (CAPTION, pa.string()),
        (CAPTIONS, pa.list_(pa.string())),
        ("raw", pa.string()),
        ("model", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
    ]
)

INSTRUCTIONS = pa.schema(
    [
        *PAIR_KEY,
        ("instructions", pa.list_(pa.string())),
        ("demonstration_ids", pa.list_(pa.int32())),
        ("raw", pa.string()),
        ("model", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
    ]
)

# the instructions after `verify`: of each, the share of hard negatives that the target beats; NaN where unknown
VERIFIED = pa.schema(
    [
        *INSTRUCTIONS,
        ("verified", pa.list_(pa.float32())),
        # the target, then hard negatives, and of each instruction a score of each; empty where pairs were compared
        (CANDIDATE_IDS, pa.list_(pa.string())),
        (CANDIDATE_SCORES, pa.list_(pa.list_(pa.float32()))),
    ]
)

TRIPLETS = pa.schema(
    [
        ("q_img", pa.string()),
        ("q_text", pa.list_(pa.string())),
        ("t_img", pa.string()),
        ("hns", pa.list_(pa.string())),  # hns[0] is the query image, as in the released set
        (RELATION, pa.list_(pa.string())),
        (SCORES, pa.list_(pa.struct([("relation", pa.string()), ("score", pa.float32())]))),
        ("task", pa.string()),
        ("language", pa.string()),  # BCP 47
        ("verified", pa.list_(pa.float32())),  # pass rate of each text of `q_text`; empty where `verify` did not run
        # of each text the score of the target and of each of `hns`, NaN where there is none; empty without scores
        (CANDIDATE_SCORES, pa.list_(pa.list_(pa.float32()))),
    ]
)

# the images that published triplets name
PUBLISHED_IMAGES = pa.schema(
    [
        (IMAGE_ID, pa.string()),
        (IMAGE, IMAGE_TYPE),
        (CAPTION, pa.string()),
        ("captions", pa.list_(pa.string())),
        # equal for the images of a near-duplicate cluster and for no others; -1 where nothing is known
        ("cluster", pa.int64()),
    ]
)

# one form for every other task: images by id, any number of them, none where the task has none
TASK_ROWS = pa.schema(
    [
        ("query_images", pa.list_(pa.string())),
        ("query_text", pa.list_(pa.string())),
        ("target_images", pa.list_(pa.string())),
        ("target_texts", pa.list_(pa.string())),
        ("negative_images", pa.list_(pa.string())),
        ("negative_texts", pa.list_(pa.string())),
        ("task", pa.string()),
        ("language", pa.string()),
    ]
)

QUERIES = pa.schema(
    [
        ("query", pa.string()),
        ("image_id", pa.string()),
        ("text", pa.string()),
        ("target_ids", pa.list_(pa.string())),
        ("rule", pa.string()),
    ]
)

RANKINGS = pa.schema(
    [
        ("model", pa.string()),
        ("strategy", pa.string()),
        ("query", pa.string()),
        ("image_id", pa.string()),
        ("text", pa.string()),
        ("target_ids", pa.list_(pa.string())),
        ("top_ids", pa.list_(pa.string())),
        ("top_scores", pa.list_(pa.float32())),
        ("rank", pa.int32()),  # of the best-placed target, counted from 1
    ]
)


def with_features(schema: pa.Schema, images: tuple[str, ...] = ()) -> pa.Schema:
    """Add the metadata by which `datasets` knows that a struct column holds images.

    Args:
        schema: an Arrow schema.
        images: the columns to be read as `datasets.Image`.

    Returns:
        The same columns, with a `huggingface` entry in the metadata.
    """
    from datasets import Features, Image

    features = Features.from_arrow_schema(schema.remove_metadata())
    for name in images:
        features[name] = Image()
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features.to_dict()}})})


def corpus_schema(meta: pa.StructType | None) -> pa.Schema:
    """Columns of a corpus.

    Args:
        meta: the type of the `meta` column: the source's extra columns as the settings declare them; None for none.
    """
    fields = [
        pa.field(IMAGE_ID, pa.string()),
        pa.field(IMAGE, IMAGE_TYPE),
        pa.field(CAPTION, pa.string()),  # the first of them; empty where there is none
        pa.field(CAPTIONS, pa.list_(pa.string())),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("num_bytes", pa.int64()),  # of the source's file
        pa.field("sha256", pa.string()),  # of the source's file: has it changed?
        pa.field("pixels_sha256", pa.string()),  # of the decoded RGB pixels and their size: is it the same image?
    ]
    if meta is not None:
        fields.append(pa.field(META, meta))
    return with_features(pa.schema(fields), (IMAGE,))


def embeddings_schema(dimension: int) -> pa.Schema:
    """Columns of embeddings: of unit length, in the row order of the corpus; zeros where there is none."""
    fields = [pa.field(IMAGE_ID, pa.string()), pa.field(EMBEDDING, pa.list_(pa.float16(), dimension))]
    return with_features(pa.schema(fields))
