"""Scenes of simple shapes, drawn from a seed: three numbers go in, a picture with exact masks and labels comes out.

Nothing is downloaded: the scenes exist to try a whole training run, detection or segmentation, within minutes. Shapes
of five classes lie on backgrounds of three; they overlap, reach out of the picture, gather in crowds, and some
pictures hold none. Each picture has its own random stream, so picture 7 is the same however many are drawn.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

SPLITS = ('train', 'val')

# How hard the scenes are. Lengths are shares of the picture's `size`, in pixels at size 128 in brackets.
SIDE_RANGE = (0.875, 1.125)  # height and width (112 to 144)
DIAMETER_RANGE = (0.16, 0.45)  # of the circle around a shape (20 to 58); small ones are the more frequent
NUM_OBJECTS = (1, 5)
EMPTY_SHARE = 0.05  # pictures without any object
CROWD_SHARE = 0.10  # pictures with a crowd
MIN_INSIDE = 0.70  # share of a shape that lies within the picture
MIN_VISIBLE = 0.50  # share of that which no other shape covers
MIN_VISIBLE_SIDE = 6  # pixels of the visible box, both ways
MIN_TEXTURED_RADIUS = 10.0  # pixels; smaller shapes are plain or shaded
MIN_CONTRAST = 125.0  # RGB distance between a shape and what it lies on; black to white is 442
FAVOURITE_SHARE = 0.95  # shapes in the favourite hue of their class; the others have any
FAVOURITE_SPREAD = 0.035  # of the hue, which runs from 0 to 1
GAIN_RANGE = (0.80, 1.15)
BIAS_RANGE = (-16.0, 16.0)  # of 255
NOISE_RANGE = (1.0, 7.0)  # standard deviation, of 255

PLACE_TRIES = 12
COLOUR_TRIES = 12
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Instance:
    """One annotated object, or one crowd."""

    category: int  # index into SHAPES
    mask: np.ndarray  # (H, W) bool: what is visible of it
    iscrowd: bool = False


@dataclass(frozen=True)
class Scene:
    """A picture and everything that is known of it."""

    image: np.ndarray  # (H, W, 3) uint8, RGB
    label_map: np.ndarray  # (H, W) uint8: 0 is unlabelled, class i of LABELS is i + 1
    instances: tuple[Instance, ...]


def draw_scene(seed: int, split: str, index: int, *, size: int = 128) -> Scene:
    """Draw picture ``index`` of a split.

    Args:
        seed: Of the data set, 0 or more.
        split: One of ``SPLITS``; the splits share no picture.
        index: Of the picture within its split.
        size: Mean side in pixels; height and width vary around it.

    >>> scene = draw_scene(0, 'train', 7)
    >>> bool((scene.image == draw_scene(0, 'train', 7).image).all())
    True
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, SPLITS.index(split), index])))
    height, width = (round(size * float(rng.uniform(*SIDE_RANGE))) for _ in range(2))
    canvas, stuff = _draw_background(rng, height, width)
    table = _Table(rng, canvas, size)
    if rng.random() >= EMPTY_SHARE:
        if rng.random() < CROWD_SHARE:
            table.add_crowd()
        for _ in range(int(rng.integers(NUM_OBJECTS[0], NUM_OBJECTS[1], endpoint=True))):
            table.add_shape()
    instances = tuple(Instance(item.category, item.visible, item.iscrowd) for item in table.items)
    return Scene(_expose(rng, table.canvas), _label(stuff, instances), instances)


# ------------------------------------------------------------------------------------------------------- what there is


def _regular(corners: int, first_angle: float = -0.5) -> np.ndarray:
    """Return a regular polygon within the unit circle, (corners, 2) as x, y; the angle is in units of pi."""
    angles = np.pi * (first_angle + 2 * np.arange(corners) / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star(points: int, inner: float) -> np.ndarray:
    return _regular(2 * points) * np.where(np.arange(2 * points) % 2, inner, 1.0)[:, None]


def _cross(arm: float) -> np.ndarray:
    reach = np.sqrt(1 - arm * arm)
    quarter = np.array([[arm, -reach], [arm, -arm], [reach, -arm]])
    turn = np.array([[0, 1], [-1, 0]])  # (x, y) @ turn: a quarter turn, clockwise on the screen
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


# Outlines within the unit circle, (corners, 2) as x, y.
SHAPES: dict[str, np.ndarray] = {
    'circle': _regular(64),
    'square': _regular(4),
    'triangle': _regular(3),
    'star': _star(5, inner=0.42),
    'cross': _cross(arm=0.30),
}
_OUTLINES = tuple(SHAPES.values())

# Favourite hue of each class. Colour is quickly learned, outlines are not: after 250 steps of 8 pictures, ConvNeXt atto
# from scratch named 98 % of the shapes right where all had their hue, and 45 % where none had.
HUES: dict[str, float] = {'circle': 0.98, 'square': 0.38, 'triangle': 0.14, 'star': 0.78, 'cross': 0.60}
_HUES = tuple(HUES[name] for name in SHAPES)

# Label map value i + 1 is the i-th entry: the backgrounds, then the shapes. The colours are for visualisation.
LABELS: dict[str, tuple[int, int, int]] = {
    'paper': (214, 206, 190),
    'sand': (222, 170, 88),
    'grid': (70, 104, 128),
    'circle': (230, 57, 70),
    'square': (56, 176, 90),
    'triangle': (255, 190, 11),
    'star': (131, 56, 236),
    'cross': (58, 134, 255),
}

# Share of the second colour at (u, v), coordinates that turn with the shape; its radius is 1.
TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    'plain': lambda u, v, pitch: np.zeros_like(u),
    'stripes': lambda u, v, pitch: np.clip(0.5 + 2.5 * np.sin(pitch * u), 0, 1),
    'checks': lambda u, v, pitch: np.clip(0.5 + 4 * np.sin(pitch * u) * np.sin(pitch * v), 0, 1),
    'dots': lambda u, v, pitch: np.clip(4 * np.cos(pitch * u) * np.cos(pitch * v) - 1.2, 0, 1),
    'gradient': lambda u, v, pitch: np.clip(0.5 + 0.6 * u, 0, 1),
}
SMOOTH_TEXTURES = ('plain', 'gradient')


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Return a colour as (3,) RGB, 0 to 255."""
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def _mottle(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Return smooth noise (H, W, 1) with blots of about ``cell`` pixels."""
    coarse = rng.normal(size=(height // cell + 3, width // cell + 3)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]


def _turned(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixel coordinates u, v, each (H, W), turned by a random angle around a random origin."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    offset_u, offset_v = rng.uniform(0, 100, 2).astype(np.float32)
    return cosine * x + sine * y + offset_u, cosine * y - sine * x + offset_v


def _paper(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Pale and nearly smooth, with faint fibres along one direction."""
    base = _hsv(rng.random(), rng.uniform(0.02, 0.16), rng.uniform(0.72, 0.90))
    fibres = cv2.blur(rng.normal(size=(height, width)).astype(np.float32), (9, 1))[..., None]
    return base + 3 * _mottle(rng, height, width, 24) + 9 * fibres


def _sand(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Yellow to brown, grainy, with ripples."""
    base = _hsv(rng.uniform(0.07, 0.13), rng.uniform(0.38, 0.58), rng.uniform(0.66, 0.86))
    u, v = _turned(rng, height, width)
    bend = 4 * _mottle(rng, height, width, 28)[..., 0]
    ripples = np.sin((u + bend) * np.float32(2 * np.pi / rng.uniform(9, 15)) + v / 40)[..., None]
    grains = rng.normal(size=(height, width, 1)).astype(np.float32)
    return base + 8 * ripples + 10 * grains


def _grid(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Dark green to blue, with thin bright lines: a cutting mat."""
    hue = rng.uniform(0.40, 0.66)
    base = _hsv(hue, rng.uniform(0.45, 0.75), rng.uniform(0.26, 0.46))
    pitch, thickness = rng.uniform(10, 18), rng.uniform(0.5, 0.8)
    u, v = _turned(rng, height, width)
    # The distance to the nearest line of either family, in pixels.
    distance = np.minimum(*(np.abs((along + pitch / 2) % pitch - pitch / 2) for along in (u, v)))
    lines = np.clip(thickness + 0.5 - distance, 0, 1)[..., None]
    return base + 3 * _mottle(rng, height, width, 20) + lines * rng.uniform(38, 62)


BACKGROUNDS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    'paper': _paper,
    'sand': _sand,
    'grid': _grid,
}


# -------------------------------------------------------------------------------------------------------- how it is put


def _draw_background(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a canvas (H, W, 3) and the index of its background (H, W); half of them have two, with a wavy seam."""
    painters = list(BACKGROUNDS.values())
    first, second = (int(kind) for kind in rng.permutation(len(painters))[:2])
    canvas = painters[first](rng, height, width)
    kinds = np.full((height, width), first, np.uint8)
    if rng.random() < 0.5:
        u, v = _turned(rng, height, width)
        seam = u + rng.uniform(2, 6) * np.sin(v / rng.uniform(8, 20))
        # Away from the middle: the smaller part keeps a fifth to a half of the picture.
        beyond = seam - np.quantile(seam, rng.uniform(0.2, 0.8))
        share = np.clip(beyond + 0.5, 0, 1)[..., None].astype(np.float32)
        canvas = canvas * (1 - share) + painters[second](rng, height, width) * share
        kinds[beyond > 0] = second
    return canvas.astype(np.float32), kinds


@dataclass
class _Item:
    category: int
    area: int  # pixels within the picture, covered ones included
    visible: np.ndarray
    iscrowd: bool = False


@dataclass(frozen=True)
class _Pose:
    x: float
    y: float
    radius: float
    angle: float


class _Table:
    """A canvas on which one thing after the other is laid, each over those before it."""

    def __init__(self, rng: np.random.Generator, canvas: np.ndarray, size: int):
        self.rng = rng
        self.canvas = canvas
        self.size = size
        self.items: list[_Item] = []

    def add_shape(self) -> None:
        """Lay down one shape, or none where no place is found that leaves all shapes recognisable."""
        rng = self.rng
        for _ in range(PLACE_TRIES):
            category = int(rng.integers(len(SHAPES)))
            # Uniform in the logarithm: each octave of size is as frequent as the next.
            low, high = np.log(DIAMETER_RANGE)
            pose = self._pose(radius=0.5 * self.size * float(np.exp(rng.uniform(low, high))))
            alpha = self._coverage(category, pose)
            mask = alpha >= 0.5
            whole = _polygon_area(_OUTLINES[category]) * pose.radius**2
            if mask.sum() >= MIN_INSIDE * whole and self._leaves_room(mask):
                self._cover(mask)
                self.items.append(_Item(category, int(mask.sum()), mask))
                self._paint(alpha, pose, self._pick_texture(pose), *self._pick_colours(category, alpha))
                return

    def add_crowd(self) -> None:
        """Lay down many tiny shapes of one class and one colour, annotated as a single region."""
        rng = self.rng
        category = int(rng.integers(len(SHAPES)))
        radius = max(2.5, self.size * float(rng.uniform(0.026, 0.036)))
        middle = self._pose(radius=radius)
        region = np.zeros(self.canvas.shape[:2], np.uint8)
        colours = None
        for x, y in self._crowd_spots(middle, step=2.4 * radius):
            pose = _Pose(x, y, radius, float(rng.uniform(0, 2 * np.pi)))
            alpha = self._coverage(category, pose)
            colours = colours or self._pick_colours(category, alpha)
            self._paint(alpha, pose, 'plain', *colours)
            region |= (alpha >= 0.5).astype(np.uint8)
        gap = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(radius) + 3,) * 2)
        mask = cv2.morphologyEx(region, cv2.MORPH_CLOSE, gap).astype(bool)
        self.items.append(_Item(category, int(mask.sum()), mask, iscrowd=True))

    def _crowd_spots(self, middle: _Pose, step: float) -> list[tuple[float, float]]:
        """Return the x, y of a honeycomb, slightly out of line, within an ellipse around the middle."""
        height, width = self.canvas.shape[:2]
        reach_u, reach_v = self.size * self.rng.uniform(0.15, 0.26, 2)
        j, i = np.mgrid[-8:9, -8:9]
        u, v = step * (i + 0.5 * (j % 2)), 0.87 * step * j
        sine, cosine = np.sin(middle.angle), np.cos(middle.angle)
        x, y = middle.x + cosine * u - sine * v, middle.y + sine * u + cosine * v
        x, y = (along + step * self.rng.uniform(-0.15, 0.15, along.shape) for along in (x, y))
        keep = (u / reach_u) ** 2 + (v / reach_v) ** 2 <= 1
        keep &= (x > 0) & (x < width) & (y > 0) & (y < height)
        return list(zip(x[keep].tolist(), y[keep].tolist(), strict=True))

    def _pose(self, radius: float) -> _Pose:
        height, width = self.canvas.shape[:2]
        margin = 0.5 * radius
        x, y = self.rng.uniform(margin, width - margin), self.rng.uniform(margin, height - margin)
        return _Pose(float(x), float(y), radius, float(self.rng.uniform(0, 2 * np.pi)))

    def _coverage(self, category: int, pose: _Pose) -> np.ndarray:
        """Return the share of each pixel (H, W) that the shape covers, 0 to 1: anti-aliased."""
        corners = _place(_OUTLINES[category], pose)
        rows, columns = self._window(pose, margin=2)
        origin = np.array([columns.start, rows.start])
        fine = np.zeros([SUPERSAMPLING * (part.stop - part.start) for part in (rows, columns)], np.uint8)
        # OpenCV counts from the middle of the first pixel, we from its corner; 4 fractional bits.
        points = np.round(16 * (SUPERSAMPLING * (corners - origin) - 0.5)).astype(np.int32)
        cv2.fillPoly(fine, [points], 255, shift=4)
        alpha = np.zeros(self.canvas.shape[:2], np.float32)
        window = alpha[rows, columns]
        window[:] = cv2.resize(fine, window.shape[::-1], interpolation=cv2.INTER_AREA)
        return alpha / 255

    def _window(self, pose: _Pose, margin: float) -> tuple[slice, slice]:
        """Return the rows and columns of the canvas around a shape."""
        reach = pose.radius + margin
        return tuple(
            slice(max(0, int(middle - reach)), max(1, min(side, int(middle + reach) + 2)))
            for middle, side in zip((pose.y, pose.x), self.canvas.shape[:2], strict=True)
        )

    def _leaves_room(self, mask: np.ndarray) -> bool:
        """Whether everything below stays recognisable, and in one outline, once the mask covers it."""
        return _spans(mask, MIN_VISIBLE_SIDE) and all(
            _is_recognisable(item.visible & ~mask, item.area) for item in self.items if (item.visible & mask).any()
        )

    def _cover(self, mask: np.ndarray) -> None:
        for item in self.items:
            item.visible = item.visible & ~mask

    def _pick_texture(self, pose: _Pose) -> str:
        return str(self.rng.choice(list(TEXTURES) if pose.radius >= MIN_TEXTURED_RADIUS else SMOOTH_TEXTURES))

    def _pick_colours(self, category: int, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first random colour that stands out from what lies under the rim (or else the best), and a second.

        The second has the same hue and is farther from what lies below: darker on bright ground, paler on dark ground.
        """
        rng = self.rng
        solid = (alpha >= 0.5).astype(np.uint8)
        reach = np.ones((5, 5), np.uint8)
        below = self.canvas[cv2.dilate(solid, reach) != cv2.erode(solid, reach)]
        favourite = rng.random() < FAVOURITE_SHARE
        best, best_contrast = np.zeros(3, np.float32), -1.0
        for _ in range(COLOUR_TRIES):
            hue = rng.normal(_HUES[category], FAVOURITE_SPREAD) if favourite else rng.random()
            colour = _hsv(hue, rng.uniform(0.5, 1.0), rng.uniform(0.45, 1.0))
            contrast = float(np.quantile(np.linalg.norm(below - colour, axis=1), 0.1))
            if contrast > best_contrast:
                best, best_contrast = colour, contrast
            if contrast >= MIN_CONTRAST:
                break
        toward = 0.0 if below.mean() > 128 else 255.0
        return best, best + float(rng.uniform(0.4, 0.6)) * (toward - best)

    def _paint(self, alpha: np.ndarray, pose: _Pose, texture: str, first: np.ndarray, second: np.ndarray) -> None:
        """Blend the shape onto the canvas, with a soft shadow to the lower right."""
        rng = self.rng
        depth = max(1.0, 0.12 * pose.radius)
        rows, columns = self._window(pose, margin=3 * depth + 2)
        canvas, alpha = self.canvas[rows, columns], alpha[rows, columns]

        offset = np.float32([[1, 0, 0.6 * depth], [0, 1, 0.8 * depth]])
        shadow = cv2.warpAffine(cv2.GaussianBlur(alpha, (0, 0), depth), offset, alpha.shape[::-1])
        canvas *= 1 - 0.45 * shadow[..., None]

        y, x = np.mgrid[rows, columns].astype(np.float32)
        sine, cosine = np.float32(np.sin(pose.angle)), np.float32(np.cos(pose.angle))
        u = (cosine * (x - pose.x) + sine * (y - pose.y)) / np.float32(pose.radius)
        v = (cosine * (y - pose.y) - sine * (x - pose.x)) / np.float32(pose.radius)
        # No finer than 5 pixels a period: finer patterns would only be noise.
        pitch = min(float(rng.uniform(7, 13)), 2 * np.pi * pose.radius / 5)
        share = TEXTURES[texture](u, v, np.float32(pitch))[..., None]
        fill = first * (1 - share) + second * share
        canvas += alpha[..., None] * (fill - canvas)


def _place(outline: np.ndarray, pose: _Pose) -> np.ndarray:
    """Return the outline (corners, 2) turned, scaled and moved; x, y in pixels."""
    sine, cosine = np.sin(pose.angle), np.cos(pose.angle)
    return pose.radius * outline @ np.array([[cosine, sine], [-sine, cosine]]) + [pose.x, pose.y]


def _polygon_area(outline: np.ndarray) -> float:
    x, y = outline.T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


def _spans(mask: np.ndarray, side: int) -> bool:
    """Whether the mask's box has ``side`` pixels or more, both ways."""
    occupied = [np.flatnonzero(mask.any(axis)) for axis in (0, 1)]
    return all(places.size and places[-1] - places[0] + 1 >= side for places in occupied)


def _is_recognisable(visible: np.ndarray, area: int) -> bool:
    if visible.sum() < MIN_VISIBLE * area or not _spans(visible, MIN_VISIBLE_SIDE):
        return False
    # A hole (a small shape in the middle of a large one) cannot be written as COCO polygons.
    hierarchy = cv2.findContours(visible.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[1]
    return bool((hierarchy[0, :, 3] == -1).all())


def _expose(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Return the picture (H, W, 3) uint8 that a camera would take: light from one side, gain, noise."""
    height, width = canvas.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = 1 + rng.uniform(0, 0.12) * (np.cos(angle) * x + np.sin(angle) * y)
    picture = canvas * (rng.uniform(*GAIN_RANGE) * light).astype(np.float32)[..., None] + rng.uniform(*BIAS_RANGE)
    picture += rng.uniform(*NOISE_RANGE) * rng.normal(size=canvas.shape)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def _label(stuff: np.ndarray, instances: tuple[Instance, ...]) -> np.ndarray:
    """Return the label map (H, W): crowds, and a band of one pixel around the shapes, are unlabelled (0)."""
    label_map = stuff + np.uint8(1)
    things = np.zeros(stuff.shape, np.uint8)
    for instance in instances:
        things[instance.mask] = 1
    label_map[cv2.dilate(things, np.ones((3, 3), np.uint8)) > 0] = 0
    names = list(LABELS)
    for instance in instances:
        if not instance.iscrowd:
            label_map[instance.mask] = 1 + names.index(list(SHAPES)[instance.category])
    return label_map
