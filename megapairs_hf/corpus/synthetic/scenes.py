"""Synthetic scenes: the embedded corpus, a deterministic generator of captioned images whose edits are known exactly.

A scene is a background and one or two groups of things; each group has a shape, color, size, texture, count and
position. Scenes come in families: a base scene and edits of it, each changing exactly one attribute, so it is known
which scene answers "this image, but with blue stars". Scene i of a seed is always the same image, whatever N is. What
surprises: the same attributes never give the same pixels, since positions, hues and sizes are jittered, as in
photographs.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace

from megapairs_hf.core.config import require

COLORS = {
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (250, 216, 52),
    "green": (56, 142, 60),
    "blue": (33, 90, 205),
    "purple": (125, 50, 160),
    "pink": (244, 143, 177),
    "brown": (121, 85, 62),
    "black": (30, 30, 30),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
COUNTS = {1: "one", 2: "two", 3: "three"}
POSITIONS = ("left", "right", "top", "bottom")
BACKGROUNDS = ("plain", "striped", "checked", "shaded")
# share of base scenes with two groups of things
TWO_GROUPS = 0.5
PARTNERS = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


@dataclass(frozen=True)
class ScenesConfig:
    """Settings of the synthetic scenes. All defaults are ours.

    Attributes:
        count: how many scenes.
        size: side of an image in pixels.
        seed: another seed gives other scenes, none of them in common but by chance.
        family: scenes in a family: one base and `family - 1` edits of it.
    """

    count: int = 3000
    size: int = 64
    seed: int = 0
    family: int = 8

    def __post_init__(self) -> None:
        require(self.count > 0, "scenes.count", self.count, "a positive number of scenes")
        require(16 <= self.size <= 4096, "scenes.size", self.size, "16 to 4096 pixels")
        require(2 <= self.family <= 20, "scenes.family", self.family, "2 to 20")


@dataclass(frozen=True)
class Group:
    """Equal things at one position."""

    shape: str
    color: str
    size: str
    texture: str
    count: int
    position: str

    def noun(self) -> str:
        """`star` or `stars`."""
        if self.count == 1:
            return self.shape
        return self.shape + ("es" if self.shape.endswith("s") else "s")

    def phrase(self) -> str:
        """`two large red striped stars on the left`."""
        number = "a" if self.count == 1 else COUNTS[self.count]
        texture = "" if self.texture == "plain" else f" {self.texture}"
        return f"{number} {self.size} {self.color}{texture} {self.noun()} {position_phrase(self.position)}"


@dataclass(frozen=True)
class Scene:
    """One scene by its attributes.

    Attributes:
        groups: one or two groups of things.
        background: color of the background.
        backdrop: plain, striped, checked or shaded.
    """

    groups: tuple[Group, ...]
    background: str
    backdrop: str

    def caption(self) -> str:
        """`two large red striped stars on the left over a plain pink background`."""
        things = " and ".join(group.phrase() for group in self.groups)
        return f"{things} over a {self.backdrop} {self.background} background"

    def key(self) -> str:
        """A name that equal scenes share."""
        parts = ["-".join(map(str, asdict(group).values())) for group in self.groups]
        return "/".join([*parts, f"{self.backdrop}-{self.background}"])


@dataclass(frozen=True)
class SyntheticScene:
    """A scene in its corpus.

    Attributes:
        name: the image id.
        scene: its attributes.
        edit_of: image id of the base scene that it is an edit of; empty for a base scene.
        edit: what was changed, as a person would ask for it; empty for a base scene.
        attribute: which attribute was changed; empty for a base scene.
    """

    name: str
    scene: Scene
    edit_of: str = ""
    edit: str = ""
    attribute: str = ""


def position_phrase(position: str) -> str:
    """`on the left`, `at the top`."""
    return f"on the {position}" if position in {"left", "right"} else f"at the {position}"


def scene_name(seed: int, index: int) -> str:
    """The image id of scene `index`."""
    return f"scene-{seed}-{index:06d}"


def make_scene(config: ScenesConfig, index: int) -> SyntheticScene:
    """Scene `index` of a corpus.

    Args:
        config: the settings; `count` does not matter.
        index: from 0.

    Returns:
        The scene; member 0 of a family is the base, the others are its edits.
    """
    family, member = divmod(index, config.family)
    rng = random.Random(f"{config.seed}/{family}")
    base = _base_scene(rng)
    if member == 0:
        return SyntheticScene(scene_name(config.seed, index), base)
    seen = {base.key()}
    edits: list[tuple[Scene, str, str]] = []
    while len(edits) < member:
        edited, text, attribute = _edit(base, rng)
        if edited.key() not in seen:
            seen.add(edited.key())
            edits.append((edited, text, attribute))
    edited, text, attribute = edits[-1]
    return SyntheticScene(
        scene_name(config.seed, index), edited, scene_name(config.seed, family * config.family), text, attribute
    )


def _base_scene(rng: random.Random) -> Scene:
    background = rng.choice(list(COLORS))
    position = rng.choice(POSITIONS)
    first = _group(rng, position, {background})
    groups: tuple[Group, ...] = (first,)
    if rng.random() < TWO_GROUPS:
        groups = (first, _group(rng, PARTNERS[position], {background, first.color}, first.shape))
    return Scene(groups, background, rng.choice(BACKGROUNDS))


def _group(rng: random.Random, position: str, not_colors: set[str], not_shape: str = "") -> Group:
    return Group(
        shape=rng.choice([shape for shape in SHAPES if shape != not_shape]),
        color=rng.choice([color for color in COLORS if color not in not_colors]),
        size=rng.choice(SIZES),
        texture=rng.choice(TEXTURES),
        count=rng.choice(list(COUNTS)),
        position=position,
    )


def _edit(scene: Scene, rng: random.Random) -> tuple[Scene, str, str]:
    kinds = ["color", "shape", "size", "texture", "count", "background", "backdrop", "position", "things"]
    kind = rng.choice(kinds)
    which = rng.randrange(len(scene.groups))
    group = scene.groups[which]
    if kind == "background":
        taken = {scene.background, *(g.color for g in scene.groups)}
        color = rng.choice([c for c in COLORS if c not in taken])
        return replace(scene, background=color), f"make the background {color}", kind
    if kind == "backdrop":
        backdrop = rng.choice([b for b in BACKGROUNDS if b != scene.backdrop])
        return replace(scene, backdrop=backdrop), f"with a {backdrop} background", kind
    if kind == "things":
        return _add_or_remove(scene, which, rng)
    if kind == "position":
        return _move(scene, rng)
    changed, text = _edit_group(group, kind, scene, rng)
    groups = tuple(changed if i == which else g for i, g in enumerate(scene.groups))
    return replace(scene, groups=groups), text, kind


def _edit_group(group: Group, kind: str, scene: Scene, rng: random.Random) -> tuple[Group, str]:
    if kind == "color":
        taken = {scene.background, *(g.color for g in scene.groups)}
        color = rng.choice([c for c in COLORS if c not in taken])
        return replace(group, color=color), f"make the {group.noun()} {color}"
    if kind == "shape":
        taken = {g.shape for g in scene.groups}
        changed = replace(group, shape=rng.choice([s for s in SHAPES if s not in taken]))
        return changed, f"{changed.noun()} instead of {group.noun()}"
    if kind == "size":
        changed = replace(group, size="large" if group.size == "small" else "small")
        return changed, f"the same but the {group.noun()} {'is' if group.count == 1 else 'are'} {changed.size}"
    if kind == "texture":
        changed = replace(group, texture=rng.choice([t for t in TEXTURES if t != group.texture]))
        return changed, f"make the {group.noun()} {changed.texture}"
    changed = replace(group, count=rng.choice([c for c in COUNTS if c != group.count]))
    return changed, f"show {COUNTS[changed.count]} {changed.noun()} instead of {COUNTS[group.count]}"


def _add_or_remove(scene: Scene, which: int, rng: random.Random) -> tuple[Scene, str, str]:
    if len(scene.groups) > 1:
        gone = scene.groups[which]
        return replace(scene, groups=(scene.groups[1 - which],)), f"without the {gone.color} {gone.noun()}", "removed"
    only = scene.groups[0]
    more = _group(rng, PARTNERS[only.position], {scene.background, only.color}, only.shape)
    return replace(scene, groups=(only, more)), f"add {more.phrase()}", "added"


def _move(scene: Scene, rng: random.Random) -> tuple[Scene, str, str]:
    first = scene.groups[0]
    position = rng.choice([p for p in POSITIONS if p != first.position])
    groups = [replace(first, position=position)]
    groups += [replace(g, position=PARTNERS[position]) for g in scene.groups[1:]]
    return replace(scene, groups=tuple(groups)), f"move the {first.noun()} to the {position}", "position"
