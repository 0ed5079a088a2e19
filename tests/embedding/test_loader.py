"""Images made ready for the models: transforms, smaller decoding, threads and processes, text by length, memory."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.corpus import CorpusConfig, make_corpus
from megapairs_hf.embedding import EmbedConfig, EncoderConfig, embed_corpus
from megapairs_hf.embedding.loader import decode_for
from megapairs_hf.images.decode import decode_image, to_rgb
from megapairs_hf.images.transforms import PlainTransform, ProcessorTransform, read_transform
from tests.small import ROOT


def make_image(width, height, seed=0):
    """A smooth image with some texture, as photographs are."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noise = rng.normal(0, 4, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def jpeg(image, **options):
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=92, **options)
    return sink.getvalue()


def processors():
    from transformers import BitImageProcessorPil, CLIPImageProcessorPil, SiglipImageProcessorPil, ViTImageProcessorPil

    return {
        "clip": CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
        "dino": BitImageProcessorPil(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}),
        "siglip": SiglipImageProcessorPil(size={"height": 64, "width": 64}),
        "vit": ViTImageProcessorPil(size={"height": 48, "width": 80}),
    }


@pytest.mark.parametrize("size", [(64, 64), (200, 131), (131, 200), (97, 97), (60, 300)])
@pytest.mark.parametrize("name", ["clip", "dino", "siglip", "vit"])
def test_the_plain_transform_is_the_processors(name, size):
    processor = processors()[name]
    transform = read_transform(processor)
    assert isinstance(transform, PlainTransform)
    image = make_image(*size)
    array = transform(decode_image(png(image)))
    assert array.dtype == np.uint8
    ours = transform.pixels(torch.from_numpy(array.copy())[None], "cpu", torch.float32)[0].numpy()
    theirs = processor(images=image, return_tensors="np")["pixel_values"][0]
    assert ours.shape == theirs.shape
    # a level of 255, normalized: torch's and Pillow's resize round differently here and there
    level = 1 / 255 / min(processor.image_std)
    assert np.abs(ours - theirs).max() <= 2.01 * level
    assert np.abs(ours - theirs).mean() <= 0.3 * level


def png(image):
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def test_a_processor_that_does_more_is_called_itself():
    from transformers import CLIPImageProcessorPil

    class Own(CLIPImageProcessorPil):
        def resize(self, *arguments, **options):
            return super().resize(*arguments, **options)

    assert isinstance(read_transform(Own()), ProcessorTransform)
    assert isinstance(read_transform(CLIPImageProcessorPil(do_rescale=False)), ProcessorTransform)


def test_a_jpeg_is_decoded_at_the_smallest_scale_that_suffices():
    content = jpeg(make_image(1024, 768))
    for side, expected in (
        (None, (1024, 768)),
        (700, (1024, 768)),
        (384, (512, 384)),
        (190, (256, 192)),
        (96, (128, 96)),
    ):
        assert decode_image(content, draft_side=side).image.size == expected
    # only JPEG can
    assert decode_image(png(make_image(512, 512)), draft_side=64).image.size == (512, 512)


def test_a_smaller_decoding_shows_the_same_image():
    transform = read_transform(processors()["clip"])
    for size in ((1024, 768), (1001, 773)):
        content = jpeg(make_image(*size))
        small = transform(decode_image(content, draft_side=transform.draft_side)).astype(float)
        whole = transform(decode_image(content)).astype(float)
        assert np.abs(small - whole).mean() < 1.5


def test_an_image_is_decoded_for_a_model_as_if_it_were_the_only_one():
    contents = {"jpeg": jpeg(make_image(420, 400)), "png": png(make_image(420, 400))}
    for name, content in contents.items():
        for sides in ([96, 150], [150, 96], [96, 190, 200, 201], [96, None], [401, 96], [60]):
            for side, decoded in zip(sides, decode_for(content, sides), strict=True):
                alone = decode_image(content, draft_side=side)
                assert decoded.image.size == alone.image.size, (name, side)
                assert decoded.image.tobytes() == alone.image.tobytes()
    # one scale, one decoding
    first, second = decode_for(contents["jpeg"], [96, 99])
    assert first is second


def test_a_smaller_decoding_keeps_orientation_and_grey_and_cmyk():
    image = make_image(800, 600)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn
    turned = decode_image(jpeg(image, exif=exif), draft_side=150)
    assert turned.image.size == (150, 200)
    assert (
        np.abs(
            np.asarray(turned.image, float)
            - np.asarray(to_rgb(jpeg(image, exif=exif)).resize((150, 200), Image.Resampling.BOX), float)
        ).mean()
        < 3
    )
    for mode in ("L", "CMYK"):
        decoded = decode_image(jpeg(image.convert(mode)), draft_side=150).image
        assert decoded.mode == "RGB"
        whole = to_rgb(jpeg(image.convert(mode))).resize(decoded.size, Image.Resampling.BOX)
        assert np.abs(np.asarray(decoded, float) - np.asarray(whole, float)).mean() < 3


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of JPEGs of several sizes, and its corpus."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "p").mkdir()
    for i in range(30):
        (folder / "p" / f"{i:02d}.jpg").write_bytes(jpeg(make_image(150 + 7 * i, 260 - 3 * i, i)))
        (folder / "p" / f"{i:02d}.txt").write_text("an image " + "of many words " * (i % 7))
    config = CorpusConfig(source="image_folder", path=str(folder / "p"), shard_rows=11)
    return folder, make_corpus(config, out=folder / "corpus")


def embeddings(corpus, models, out, only=None, **settings):
    chosen = (
        EncoderConfig("clip_image", "./clip", "image"),
        EncoderConfig("dino_image", "./dino", "image"),
        EncoderConfig("clip_text", "./clip", "caption"),
    )
    chosen = tuple(one for one in chosen if only in {None, one.name})
    made = embed_corpus(corpus, config=EmbedConfig(encoders=chosen, batch_size=4, **settings), out=out, work=models)
    return {name: artifact.arrays() for name, artifact in made.items()}


def test_threads_and_processes_make_the_same_embeddings(photographs, models, tmp_path):
    _, corpus = photographs
    threads = embeddings(corpus, models, tmp_path / "threads", threads=3)
    processes = embeddings(corpus, models, tmp_path / "processes", workers=2)
    for name, array in threads.items():
        assert np.array_equal(array, processes[name])


def test_captions_sorted_by_length_come_back_in_their_order(photographs, models, tmp_path):
    from megapairs_hf.embedding.config import ModelSettings
    from megapairs_hf.embedding.encoders import load_encoder

    _, corpus = photographs
    made = embeddings(corpus, models, tmp_path / "out")["clip_text"].astype(float)
    settings = ModelSettings(EncoderConfig("clip_text", "./clip", "caption"), batch_size=1)
    encoder = load_encoder(settings, f"{models}/clip", "cpu")
    with torch.inference_mode():
        for row, caption in enumerate(corpus.table(["caption"])["caption"].to_pylist()):
            alone = encoder.encode_captions([caption])[0].double()
            # float16 rounds a vector of length one by up to 0.0005
            assert float(alone / alone.norm() @ torch.from_numpy(made[row])) > 0.9995


def test_draft_is_a_setting_of_what_is_made(photographs, models, tmp_path):
    from megapairs_hf.core.errors import StaleArtifactError

    _, corpus = photographs
    drafted = embeddings(corpus, models, tmp_path / "out")
    whole = embeddings(corpus, models, tmp_path / "whole", draft=False)
    cosines = (drafted["clip_image"].astype(float) * whole["clip_image"].astype(float)).sum(1)
    assert cosines.min() > 0.99
    with pytest.raises(StaleArtifactError, match="draft"):
        embeddings(corpus, models, tmp_path / "out", draft=False)


def by_reference(source, folder, out, **more):
    config = CorpusConfig(source=source, path=str(folder), images="by_reference", shard_rows=11, **more)
    return make_corpus(config, out=out)


@pytest.mark.parametrize("source", ["image_folder", "parquet", "webdataset"])
def test_a_corpus_by_reference_copies_nothing_and_gives_the_same_embeddings(source, photographs, models, tmp_path):
    import tarfile

    import datasets

    folder, corpus = photographs
    place, more = folder / "p", {}
    if source == "parquet":
        place, more = tmp_path / "parquet", {"id_column": "key"}
        place.mkdir()
        rows = [
            {"key": p.name, "caption": p.with_suffix(".txt").read_text(), "image": str(p)}
            for p in sorted((folder / "p").glob("*.jpg"))
        ]
        whole = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        for i in range(2):
            shard = whole.shard(2, i, contiguous=True)
            shard = shard.map(lambda row: row)
            embedded = datasets.table.embed_table_storage(shard.with_format("arrow")[:])
            import pyarrow.parquet as pq

            pq.write_table(embedded, place / f"{i}.parquet", row_group_size=4)
    elif source == "webdataset":
        place = tmp_path / "tars"
        place.mkdir()
        with tarfile.open(place / "a.tar", "w") as tar:
            for path in sorted((folder / "p").iterdir()):
                tar.add(path, path.name)
    referring = by_reference(source, place, tmp_path / "corpus", **more)
    assert referring.rows == corpus.rows
    assert all(cell["bytes"] is None for cell in referring.table(["image"])["image"].to_pylist())
    assert sum(f.stat().st_size for f in (tmp_path / "corpus").glob("*.parquet")) < 60_000
    assert referring.table(["pixels_sha256"]) == corpus.table(["pixels_sha256"])
    embedded, referred = embeddings(corpus, models, tmp_path / "a"), embeddings(referring, models, tmp_path / "b")
    for name, array in embedded.items():
        assert np.array_equal(array, referred[name])


def test_an_image_that_went_away_is_named(photographs, models, tmp_path):
    import shutil

    folder, _ = photographs
    shutil.copytree(folder / "p", tmp_path / "p")
    corpus = by_reference("image_folder", tmp_path / "p", tmp_path / "corpus")
    (tmp_path / "p" / "07.jpg").unlink()
    for workers in (0, 1):
        with pytest.raises(ArtifactError, match=r"07.jpg is not in .* any more .*put it back"):
            embeddings(corpus, models, tmp_path / f"out{workers}", workers=workers)


def test_a_reference_never_leaves_the_root(tmp_path):
    from megapairs_hf.images.locate import image_bytes

    (tmp_path / "p").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    with pytest.raises(ArtifactError, match="lies outside"):
        image_bytes({"bytes": None, "path": "../secret.txt"}, str(tmp_path / "p"))


PROGRAM = r"""
import re, sys
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.embedding import EmbedConfig, EncoderConfig, embed_corpus
corpus, models, out = open_artifact(sys.argv[1]), sys.argv[2], sys.argv[3]
config = EmbedConfig(encoders=(EncoderConfig("m", "./clip", "image"),), batch_size=16)
embed_corpus(corpus, config=config, out=out, work=models)
print(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.long
def test_memory_stays_flat_as_the_corpus_grows(models, tmp_path):
    peaks = []
    for count in (100, 400):
        folder = tmp_path / f"p{count}"
        folder.mkdir()
        for i in range(count):
            # 60 kB a file, 0.8 MB decoded: all at once they would take 300 MB
            (folder / f"{i:04d}.jpg").write_bytes(jpeg(make_image(600, 450, i)))
        config = CorpusConfig(source="image_folder", path=str(folder), caption_template="{stem}", shard_rows=50)
        corpus = make_corpus(config, out=tmp_path / f"c{count}")
        command = [sys.executable, "-c", PROGRAM, corpus.path, str(models), str(tmp_path / f"out{count}")]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 40, peaks


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["clip", "dino"])
def test_the_stage_keeps_a_gpu_busy(name, tmp_path):
    """ViT-L/14 and DINOv2-L with random weights: at least 0.95 of the model on resident tensors."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    from benchmarks.gpu_parts import FULL, embed

    assert embed(name, FULL, tmp_path) >= 0.95
