import dataclasses

import pytest

from megapairs_hf.annotation import Endpoint, InstructConfig
from megapairs_hf.annotation.config import DescribeConfig
from megapairs_hf.core.config import RENAMED, build_config, config_hash, given_settings, parse_value, read_yaml
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.corpus import CorpusConfig
from megapairs_hf.dataset.config import BuildConfig
from megapairs_hf.embedding import EmbedConfig
from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec
from megapairs_hf.hub.config import PushConfig
from megapairs_hf.mining import MineConfig, RelationConfig
from megapairs_hf.training import PretrainConfig, TrainConfig


def test_an_unknown_key_names_the_nearest_one():
    with pytest.raises(ConfigError, match=r"unknown key 'neighbor'; did you mean 'neighbors'\?"):
        build_config(MineConfig, {"neighbor": 3})


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_key_is_answered_with_its_new_name(old, new):
    classes = [
        cls
        for cls in (
            CorpusConfig,
            MineConfig,
            EmbedConfig,
            BuildConfig,
            PushConfig,
            InstructConfig,
            Endpoint,
            BenchmarkSpec,
        )
        if new in {field.name for field in dataclasses.fields(cls)}
    ]
    assert classes
    for cls in classes:
        with pytest.raises(ConfigError, match=f"`{old}` is now `{new}`"):
            build_config(cls, {old: 1})


def test_yaml_floats_without_a_dot_are_floats(tmp_path):
    (tmp_path / "train.yaml").write_text("lr: 5e-6\nmodel: ./clip\n")
    assert build_config(TrainConfig, read_yaml(tmp_path / "train.yaml")).lr == 5e-6


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"similarity_range": [0.9, 0.8]}, "`similarity_range` is"),
        ({"negatives": 0}, "`negatives` is 0, but must be at least 1"),
        ({"similarity_range": 0.9}, "`similarity_range` must be a list"),
        ({"relations": None}, "`relations` must be a list"),
        ({"relations": "clip"}, "`relations` cannot be ('clip',)"),
        ({"neighbors": "many"}, "`neighbors` cannot be 'many'"),
        ({"range_kind": "relative"}, "`range_kind` cannot be 'relative'; take one of 'absolute'"),
    ],
)
def test_a_bad_value_names_field_value_and_range(values, sentence):
    with pytest.raises(ConfigError) as error:
        build_config(MineConfig, values)
    assert sentence in str(error.value)


def test_nested_settings_are_dataclasses():
    built = build_config(MineConfig, {"relations": [{"name": "image_text", "query": "a", "target": "b"}]})
    assert built.relations == (RelationConfig("image_text", "a", "b"),)


def test_one_value_is_a_list_of_one():
    assert build_config(TrainConfig, {"relations": "clip_text"}).relations == ("clip_text",)
    assert build_config(MineConfig, {"relations": {"name": "clip"}}).relations == (RelationConfig("clip"),)
    config = build_config(DescribeConfig, {"endpoint": {"urls": "http://gpu-1:8080/v1"}})
    assert config.endpoint.urls == ("http://gpu-1:8080/v1",)


def test_one_key_of_nested_settings_leaves_the_others_at_their_defaults():
    given = build_config(PretrainConfig, {"clip": {"steps": 7, "warmup_steps": 2}, "model": {"width": 32}})
    assert (given.clip.steps, given.clip.warmup_steps, given.model.width) == (7, 2, 32)
    assert dataclasses.replace(given.clip, steps=PretrainConfig().clip.steps,
                               warmup_steps=PretrainConfig().clip.warmup_steps) == PretrainConfig().clip  # fmt: skip
    assert given.dino == PretrainConfig().dino
    with pytest.raises(ConfigError, match=r"clip: unknown key 'step'; did you mean 'steps'\?"):
        build_config(PretrainConfig, {"clip": {"step": 7}})


def test_settings_of_how_do_not_change_the_hash():
    config = CorpusConfig("scenes")
    assert config_hash(dataclasses.replace(config, threads=7)) == config_hash(config)
    assert config_hash(dataclasses.replace(config, min_side=7)) != config_hash(config)


def test_nested_settings_of_how_do_not_either():
    config = PretrainConfig()
    often = dataclasses.replace(config, clip=dataclasses.replace(config.clip, checkpoint_every=7))
    assert config_hash(often) == config_hash(config)


def test_flags_are_read_as_yaml():
    assert parse_value("[0.8, 0.96]") == [0.8, 0.96]
    assert parse_value("true") is True


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    (tmp_path / "f.yaml").write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="key: value"):
        read_yaml(tmp_path / "f.yaml")


def test_settings_come_as_one_object_or_as_keywords():
    assert given_settings(MineConfig, None, {"neighbors": 3}, "mine") == MineConfig(neighbors=3)
    assert given_settings(MineConfig, MineConfig(neighbors=4), {}, "mine").neighbors == 4
    with pytest.raises(ConfigError, match=r"mine: give `config` or single settings \(neighbors\), not both"):
        given_settings(MineConfig, MineConfig(), {"neighbors": 3}, "mine")
    with pytest.raises(ConfigError, match="did you mean 'neighbors'"):
        given_settings(MineConfig, None, {"neighbor": 3}, "mine")
