import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from megapairs_hf.corpus.synthetic.rendering import draw_scene
from megapairs_hf.corpus.synthetic.scenes import COLORS, ScenesConfig, make_scene

CONFIG = ScenesConfig(count=200, size=48, family=8)
SCENES = [make_scene(CONFIG, i) for i in range(200)]


def attributes(scene):
    told = {"background": scene.background, "backdrop": scene.backdrop, "groups": len(scene.groups)}
    for number, group in enumerate(scene.groups):
        told |= {f"{number}.{name}": value for name, value in asdict(group).items()}
    return told


def test_a_scene_depends_on_seed_and_number_alone():
    other = replace(CONFIG, count=10)
    assert make_scene(other, 5) == SCENES[5]
    assert np.array_equal(np.asarray(draw_scene(CONFIG, 5)), np.asarray(draw_scene(other, 5)))
    assert make_scene(replace(CONFIG, seed=1), 5).scene != SCENES[5].scene


@pytest.mark.parametrize("number", [i for i in range(200) if i % 8])
def test_an_edit_changes_exactly_what_it_says(number):
    edit, base = SCENES[number], SCENES[number - number % 8]
    assert edit.edit_of == base.name
    before, after = attributes(base.scene), attributes(edit.scene)
    changed = {name.split(".")[-1] for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    if edit.attribute in {"added", "removed"}:
        assert abs(before["groups"] - after["groups"]) == 1
    else:
        assert changed == {edit.attribute}
        new = [str(v) for k, v in after.items() if before[k] != v]
        words = re.findall(r"\w+", edit.edit)
        named = {"1": "one", "2": "two", "3": "three"}
        assert any(named.get(v, v).rstrip("s") in word for v in new for word in words)


def test_families_hold_no_scene_twice():
    for start in range(0, 200, 8):
        assert len({scene.scene.key() for scene in SCENES[start : start + 8]}) == 8


def test_captions_tell_every_attribute():
    for drawn in SCENES:
        for group in drawn.scene.groups:
            assert {group.color, group.size, group.noun()} <= set(drawn.scene.caption().split())
        assert drawn.scene.caption().endswith(f"{drawn.scene.backdrop} {drawn.scene.background} background")


def test_the_colors_are_in_the_image():
    plain = [i for i, drawn in enumerate(SCENES) if drawn.scene.backdrop == "plain"]
    for i in plain[:20]:
        corner = np.asarray(draw_scene(CONFIG, i))[1, 1].astype(int)
        assert np.abs(corner - COLORS[SCENES[i].scene.background]).max() <= 14


@pytest.mark.parametrize("size", [16, 100, 256])
def test_any_resolution(size):
    image = draw_scene(replace(CONFIG, size=size), 0)
    assert image.size == (size, size)
    assert image.mode == "RGB"
