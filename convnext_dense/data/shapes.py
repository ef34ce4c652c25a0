"""Scenes of simple shapes, drawn from a seed, with exact masks and labels.

They exist to try a whole training run, detection or segmentation, within minutes and without a download. Each picture
has a random stream of its own, so that picture 7 is the same however many are drawn.
"""

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


@dataclass
class Instance:
    """One annotated object."""

    category: int  # index into SHAPES
    mask: np.ndarray  # (H, W) bool: what is visible of it


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
    instances: list[Instance] = []
    if rng.random() >= EMPTY_SHARE:
        areas: list[int] = []  # pixels within the picture, covered ones included
        for _ in range(int(rng.integers(*NUM_OBJECTS, endpoint=True))):
            _add_shape(rng, canvas, instances, areas, size)
    image = canvas * rng.uniform(*GAIN_RANGE) + rng.uniform(*BIAS_RANGE)
    image += rng.uniform(*NOISE_RANGE) * rng.normal(size=canvas.shape)
    image = np.clip(np.round(image), 0, 255).astype(np.uint8)
    return Scene(image, _label(stuff, instances), tuple(instances))


def _regular(corners: int) -> np.ndarray:
    """Return a regular polygon within the unit circle, (corners, 2) as x, y."""
    angles = np.pi * (2 * np.arange(corners) / corners - 0.5)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


_QUARTERS = [(1, 0), (0, 1), (-1, 0), (0, -1)]  # cosine and sine of the four quarter turns

# Outlines within the unit circle, (corners, 2) as x, y.
SHAPES: dict[str, np.ndarray] = {
    'circle': _regular(64),
    'square': _regular(4),
    'triangle': _regular(3),
    'star': _regular(10) * np.resize([1.0, 0.42], 10)[:, None],
    'cross': np.array([(a * x - b * y, a * y + b * x) for a, b in _QUARTERS for x, y in [(10, -3), (10, 3), (3, 3)]])
    / np.hypot(3, 10),
}

# Favourite hue of each class. Colour is quickly learned, outlines are not: after 250 steps of 8 pictures, ConvNeXt atto
# from scratch named 98 % of the shapes right where all had their hue, and 45 % where none had.
HUES: dict[str, float] = {'circle': 0.98, 'square': 0.38, 'triangle': 0.14, 'star': 0.78, 'cross': 0.60}

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
    'gradient': lambda u, v, pitch: np.clip(0.5 + 0.6 * u, 0, 1),
    'stripes': lambda u, v, pitch: np.clip(0.5 + 2.5 * np.sin(pitch * u), 0, 1),
    'checks': lambda u, v, pitch: np.clip(0.5 + 4 * np.sin(pitch * u) * np.sin(pitch * v), 0, 1),
    'dots': lambda u, v, pitch: np.clip(4 * np.cos(pitch * u) * np.cos(pitch * v) - 1.2, 0, 1),
}
NUM_SMOOTH = 2  # of the textures, which come first


def _paper(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Pale and nearly smooth."""
    return _hsv(rng.random(), rng.uniform(0.02, 0.16), rng.uniform(0.72, 0.90)) + _noise(rng, u, 4)


def _sand(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Yellow to brown, grainy, with ripples."""
    base = _hsv(rng.uniform(0.07, 0.13), rng.uniform(0.38, 0.58), rng.uniform(0.66, 0.86))
    ripples = np.sin(u * 2 * np.pi / rng.uniform(9, 15) + v / 40)[..., None]
    return base + 8 * ripples + _noise(rng, u, 10)


def _grid(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Dark green to blue, with thin bright lines."""
    base = _hsv(rng.uniform(0.40, 0.66), rng.uniform(0.45, 0.75), rng.uniform(0.26, 0.46))
    pitch, thickness = rng.uniform(10, 18), rng.uniform(0.5, 0.8)
    distance = np.minimum(*(np.abs(along % pitch - pitch / 2) for along in (u, v)))  # to the nearest line, in pixels
    lines = np.clip(thickness + 0.5 - distance, 0, 1)[..., None]
    return base + lines * rng.uniform(38, 62)


BACKGROUNDS = (_paper, _sand, _grid)


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Return a colour as (3,) RGB, 0 to 255."""
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def _noise(rng: np.random.Generator, like: np.ndarray, strength: float) -> np.ndarray:
    return strength * rng.normal(size=(*like.shape, 1))


def _turn(shape: tuple[int, int], x: float, y: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Return pixel coordinates u, v, each (H, W), around a point and turned by an angle in radians."""
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    sine, cosine = np.sin(angle), np.cos(angle)
    return cosine * (columns - x) + sine * (rows - y), cosine * (rows - y) - sine * (columns - x)


def _draw_background(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a canvas (H, W, 3) and the index of its background (H, W); half of them have two, with a wavy seam."""
    first, second = (int(kind) for kind in rng.permutation(len(BACKGROUNDS))[:2])
    u, v = _turn((height, width), *rng.uniform(-100, 0, 2), rng.uniform(0, np.pi))
    canvas = BACKGROUNDS[first](rng, u, v)
    kinds = np.full((height, width), first, np.uint8)
    if rng.random() < 0.5:
        u, v = _turn((height, width), 0, 0, rng.uniform(0, np.pi))
        seam = u + rng.uniform(2, 6) * np.sin(v / rng.uniform(8, 20))
        beyond = seam > np.quantile(seam, rng.uniform(0.2, 0.8))  # the smaller part keeps a fifth to a half
        canvas = np.where(beyond[..., None], BACKGROUNDS[second](rng, u, v), canvas)
        kinds[beyond] = second
    return canvas.astype(np.float32), kinds


def _add_shape(
    rng: np.random.Generator, canvas: np.ndarray, instances: list[Instance], areas: list[int], size: int
) -> None:
    """Lay one shape over those before it, or none where no place is found that leaves all shapes recognisable."""
    for _ in range(PLACE_TRIES):
        category = int(rng.integers(len(SHAPES)))
        # Uniform in the logarithm: each octave of size is as frequent as the next.
        radius = 0.5 * size * float(np.exp(rng.uniform(*np.log(DIAMETER_RANGE))))
        y, x = (float(rng.uniform(0.5 * radius, side - 0.5 * radius)) for side in canvas.shape[:2])
        angle = float(rng.uniform(0, 2 * np.pi))
        outline = _outline(category, x, y, radius, angle)
        alpha = np.zeros(canvas.shape[:2], np.uint8)
        cv2.fillPoly(alpha, [np.round(16 * outline).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
        mask = alpha >= 128
        is_inside = mask.sum() >= MIN_INSIDE * cv2.contourArea(outline.astype(np.float32))
        rest = [item.mask & ~mask for item in instances]
        if is_inside and all(map(_is_recognisable, [mask, *rest], [int(mask.sum()), *areas])):
            for item, visible in zip(instances, rest, strict=True):
                item.mask = visible
            instances.append(Instance(category, mask))
            areas.append(int(mask.sum()))
            u, v = (along / radius for along in _turn(alpha.shape, x, y, angle))
            fill = _fill(rng, _pick_colour(rng, category, _rim(canvas, mask)), u, v, radius)
            canvas += alpha[..., None] / np.float32(255) * (fill - canvas)
            return


def _outline(category: int, x: float, y: float, radius: float, angle: float) -> np.ndarray:
    """Return the corners of a shape, (corners, 2) as x, y in pixels."""
    sine, cosine = np.sin(angle), np.cos(angle)
    return radius * list(SHAPES.values())[category] @ np.array([[cosine, sine], [-sine, cosine]]) + [x, y]


def _is_recognisable(visible: np.ndarray, area: int) -> bool:
    """Whether enough of a shape can be seen, without a hole, which COCO's polygons cannot express."""
    if visible.sum() < MIN_VISIBLE * max(area, 1):
        return False
    width, height = cv2.boundingRect(visible.astype(np.uint8))[2:]
    hierarchy = cv2.findContours(visible.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[1]
    return min(width, height) >= MIN_VISIBLE_SIDE and bool((hierarchy[0, :, 3] == -1).all())


def _rim(canvas: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the colours (pixels, 3) along the outline of a mask."""
    solid, reach = mask.astype(np.uint8), np.ones((5, 5), np.uint8)
    return canvas[cv2.dilate(solid, reach) != cv2.erode(solid, reach)]


def _pick_colour(rng: np.random.Generator, category: int, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first random colour that stands out from those below (or else the best), and a paler or darker one."""
    is_favourite = rng.random() < FAVOURITE_SHARE
    best, highest = np.zeros(3, np.float32), -1.0
    for _ in range(COLOUR_TRIES):
        hue = rng.normal(list(HUES.values())[category], FAVOURITE_SPREAD) if is_favourite else rng.random()
        colour = _hsv(hue, rng.uniform(0.5, 1.0), rng.uniform(0.45, 1.0))
        contrast = float(np.quantile(np.linalg.norm(below - colour, axis=1), 0.1))
        if contrast > highest:
            best, highest = colour, contrast
        if highest >= MIN_CONTRAST:
            break
    toward = 0.0 if below.mean() > 128 else 255.0
    return best, best + float(rng.uniform(0.4, 0.6)) * (toward - best)


def _fill(
    rng: np.random.Generator, colours: tuple[np.ndarray, np.ndarray], u: np.ndarray, v: np.ndarray, radius: float
) -> np.ndarray:
    """Return a texture (H, W, 3) of two colours."""
    names = list(TEXTURES)[: None if radius >= MIN_TEXTURED_RADIUS else NUM_SMOOTH]
    pitch = min(float(rng.uniform(7, 13)), 2 * np.pi * radius / 5)  # 5 pixels a period or more: finer is only noise
    share = TEXTURES[str(rng.choice(names))](u, v, pitch)[..., None]
    return colours[0] * (1 - share) + colours[1] * share


def _label(stuff: np.ndarray, instances: list[Instance]) -> np.ndarray:
    """Return the label map (H, W): a band of one pixel around the shapes is unlabelled (0)."""
    label_map = stuff + np.uint8(1)
    things = np.any([item.mask for item in instances], axis=0) if instances else np.zeros(stuff.shape)
    label_map[cv2.dilate(things.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0] = 0
    for item in instances:
        label_map[item.mask] = 1 + len(BACKGROUNDS) + item.category
    return label_map
