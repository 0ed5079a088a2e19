"""Draws a scene with Pillow, at four times the resolution and then reduced, so that edges are smooth.

Each attribute is rendered with a random deviation: hue, position, size and angle differ from image to image.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from PIL import Image, ImageChops, ImageDraw

from megapairs_hf.corpus.synthetic.scenes import make_scene

if TYPE_CHECKING:
    from megapairs_hf.corpus.synthetic.scenes import Group, Scene, ScenesConfig

Color = tuple[int, int, int]
OVERSAMPLING = 4
CENTERS = {"left": (0.27, 0.5), "right": (0.73, 0.5), "top": (0.5, 0.27), "bottom": (0.5, 0.73)}
RADII = {"small": 0.1, "large": 0.165}
# positions of one, two and three things around the center of their group, in radii
OFFSETS = {
    1: ((0.0, 0.0),),
    2: ((-0.95, -0.55), (0.95, 0.55)),
    3: ((-1.0, -0.8), (1.0, -0.8), (0.0, 0.95)),
}


def draw(scene: Scene, size: int, rng: random.Random) -> Image.Image:
    """Draw a scene.

    Args:
        scene: what to draw.
        size: side of the image in pixels.
        rng: decides the jitter.

    Returns:
        An RGB image.
    """
    side = size * OVERSAMPLING
    image = _backdrop(scene, side, rng)
    for group in scene.groups:
        _draw_group(image, group, side, rng)
    return image.resize((size, size), Image.Resampling.BOX)


def _jitter(color: Color, rng: random.Random, amount: int = 14) -> Color:
    red, green, blue = (max(0, min(255, part + rng.randint(-amount, amount))) for part in color)
    return red, green, blue


def _towards(color: Color, other: Color, share: float) -> Color:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(color, other, strict=True))
    return red, green, blue


def _contrast(color: Color) -> Color:
    return (255, 255, 255) if sum(color) < 384 else (40, 40, 40)


def _backdrop(scene: Scene, side: int, rng: random.Random) -> Image.Image:
    from megapairs_hf.corpus.synthetic.scenes import COLORS

    color = _jitter(COLORS[scene.background], rng)
    image = Image.new("RGB", (side, side), color)
    pen = ImageDraw.Draw(image)
    shade = _towards(color, _contrast(color), 0.22)
    step = side // 6
    shift = rng.randrange(step)
    if scene.backdrop == "striped":
        for y in range(-step, side + step, step):
            pen.rectangle((0, y + shift, side, y + shift + step // 2), fill=shade)
    elif scene.backdrop == "checked":
        for row, y in enumerate(range(-step, side + step, step)):
            for column, x in enumerate(range(-step, side + step, step)):
                if (row + column) % 2:
                    pen.rectangle((x + shift, y + shift, x + shift + step - 1, y + shift + step - 1), fill=shade)
    elif scene.backdrop == "shaded":
        for y in range(side):
            pen.line((0, y, side, y), fill=_towards(color, _contrast(color), 0.45 * y / side))
    return image


def _draw_group(image: Image.Image, group: Group, side: int, rng: random.Random) -> None:
    from megapairs_hf.corpus.synthetic.scenes import COLORS

    color = _jitter(COLORS[group.color], rng)
    radius = RADII[group.size] * side * rng.uniform(0.92, 1.08)
    center_x, center_y = CENTERS[group.position]
    center_x += rng.uniform(-0.02, 0.02)
    center_y += rng.uniform(-0.02, 0.02)
    for offset_x, offset_y in OFFSETS[group.count]:
        x, y = center_x * side + offset_x * radius, center_y * side + offset_y * radius
        x = min(max(x, radius * 1.05), side - radius * 1.05)
        y = min(max(y, radius * 1.05), side - radius * 1.05)
        mask = _shape_mask(group.shape, side, x, y, radius, rng.uniform(-0.12, 0.12))
        image.paste(_filling(group.texture, color, side, radius), mask=mask)


def _filling(texture: str, color: Color, side: int, radius: float) -> Image.Image:
    filling = Image.new("RGB", (side, side), color)
    if texture == "plain":
        return filling
    pen = ImageDraw.Draw(filling)
    other = _towards(color, _contrast(color), 0.75)
    step = max(4, round(radius * 0.55))
    if texture == "striped":
        for x in range(0, side, step):
            pen.rectangle((x, 0, x + step // 2 - 1, side), fill=other)
    else:
        dot = step * 0.3
        for x in range(0, side, step):
            for y in range(0, side, step):
                pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=other)
    return filling


def _points(corners: int, radii: tuple[float, ...], x: float, y: float, angle: float) -> list[tuple[float, float]]:
    turn = 2 * math.pi / corners
    return [
        (
            x + radii[i % len(radii)] * math.sin(i * turn + angle),
            y - radii[i % len(radii)] * math.cos(i * turn + angle),
        )
        for i in range(corners)
    ]


def _shape_mask(shape: str, side: int, x: float, y: float, radius: float, angle: float) -> Image.Image:
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape in {"circle", "ring"}:
        pen.ellipse(box, fill=255)
        if shape == "ring":
            hole = radius * 0.55
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    elif shape == "heart":
        _heart(pen, x, y, radius)
    elif shape == "cross":
        arm = radius * 0.34
        bar = Image.new("L", (side, side), 0)
        pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=255)
        ImageDraw.Draw(bar).rectangle((x - radius, y - arm, x + radius, y + arm), fill=255)
        mask = ImageChops.lighter(mask, bar)
    else:
        corners, radii, turn = {
            "square": (4, (radius * 1.15,), math.pi / 4),
            "diamond": (4, (radius * 1.1, radius * 0.7), 0.0),
            "triangle": (3, (radius * 1.15,), 0.0),
            "star": (10, (radius * 1.15, radius * 0.48), 0.0),
        }[shape]
        pen.polygon(_points(corners, radii, x, y, turn + angle), fill=255)
    return mask


def _heart(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    points = []
    for i in range(60):
        t = i / 60 * 2 * math.pi
        across = 16 * math.sin(t) ** 3
        up = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x + across * radius / 16, y - up * radius / 16))
    pen.polygon(points, fill=255)


def draw_scene(config: ScenesConfig, index: int) -> Image.Image:
    """The image of scene `index`, RGB, `size` x `size`."""
    return draw(make_scene(config, index).scene, config.size, random.Random(f"{config.seed}/{index}/pixels"))
