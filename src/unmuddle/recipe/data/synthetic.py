"""Procedurally drawn faces with known true labels and simulated annotator votes.

A face is drawn from eleven parameters that resemble muscles. Each expression is one setting of
these parameters. A sample blends a main expression with another one, at a random strength. Weak and
mixed faces are therefore ambiguous. Ten simulated annotators vote accordingly.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from unmuddle.recipe.data.types import LabeledImages, Splits

CLASSES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear")
SIZE = 48
VOTERS = 10
_SCALE = 4  # faces are drawn at 192 x 192 and reduced
_CANVAS = SIZE * _SCALE
_FACE_CENTRE = (96.0, 108.0)
_FACE_HALF = 72.0

RGB = tuple[int, int, int]


class Muscles(NamedTuple):
    """Deviation of a face from its relaxed state. 0 is relaxed, 1 is strong."""

    brow_inner: float = 0.0  # up
    brow_outer: float = 0.0  # up
    brow_knit: float = 0.0  # towards the nose
    eye_open: float = 0.0
    lower_lid: float = 0.0  # up
    nose_wrinkle: float = 0.0
    lip_raise: float = 0.0  # upper lip, baring the teeth
    mouth_curve: float = 0.0  # corners up
    mouth_open: float = 0.0
    mouth_wide: float = 0.0
    cheeks: float = 0.0


EXPRESSIONS = {  # brows (3), eyes (2), nose, lip, mouth (3), cheeks
    "neutral": Muscles(),
    "happiness": Muscles(0, 0.1, 0, -0.15, 0.5, 0, 0, 1, 0.35, 0.5, 1),
    "surprise": Muscles(0.9, 1, 0, 0.8, 0, 0, 0, 0, 1, -0.5, 0),
    "sadness": Muscles(0.9, -0.7, 0.3, -0.35, 0, 0, 0, -1, 0, -0.1, 0),
    "anger": Muscles(-1, 0.35, 1, 0.1, 0.4, 0, 0, -0.35, 0, -0.3, 0),
    "disgust": Muscles(-0.55, -0.3, 0.4, -0.6, 0.5, 1, 1, -0.6, 0.2, 0, 0),
    "fear": Muscles(1, 0.1, 0.7, 0.75, 0, 0, 0.3, -0.45, 0.4, 0.6, 0),
}


def load_synthetic(train: int = 1600, val: int = 500, test: int = 1000) -> Splits:
    """Draw the three splits. The faces do not depend on the training seed."""
    return Splits(
        *(_draw_split(number, size) for number, size in enumerate((train, val, test))),
        classes=CLASSES,
        image_size=SIZE,
    )


def _draw_split(split: int, size: int) -> LabeledImages:
    images = torch.empty(size, 3, SIZE, SIZE, dtype=torch.uint8)
    labels = torch.empty(size, dtype=torch.int64)
    votes = torch.empty(size, len(CLASSES))
    for i in range(size):
        images[i], labels[i], votes[i] = draw_sample(np.random.default_rng((split, i)))
    return LabeledImages(images, labels, true_labels=labels, votes=votes)


def draw_sample(rng: np.random.Generator) -> tuple[Tensor, int, Tensor]:
    """Draw one face `(3, 48, 48)` uint8, its true label, and its votes `(7,)` as a distribution."""
    main = int(rng.integers(len(CLASSES)))
    other = int((main + rng.integers(1, len(CLASSES))) % len(CLASSES))
    strength = rng.uniform(0.6, 1.0)
    mix = rng.uniform(0.0, 0.1) if rng.random() < 0.7 else rng.uniform(0.1, 0.42)

    belief = np.full(len(CLASSES), 0.01)
    belief[main] += (1 - mix) * (0.5 + 0.5 * strength)
    belief[other] += mix * (0.5 + 0.5 * strength)
    belief[0] += 0.5 * (1 - strength)
    votes = rng.multinomial(VOTERS, belief / belief.sum()) / VOTERS

    of_main, of_other = (np.array(EXPRESSIONS[CLASSES[label]]) for label in (main, other))
    blend = (1 - mix) * of_main + mix * of_other
    muscles = Muscles(*(strength * blend + rng.normal(0, 0.06, len(blend))))
    image = torch.from_numpy(_draw_face(muscles, rng)).permute(2, 0, 1)
    return image, main, torch.from_numpy(votes)


def _draw_face(muscles: Muscles, rng: np.random.Generator) -> np.ndarray:
    """Draw a random person with this expression, `(48, 48, 3)` uint8."""
    person = _Person(rng)
    canvas = Image.new("RGB", (_CANVAS, _CANVAS), person.background)
    draw = ImageDraw.Draw(canvas)
    _draw_head(draw, person)
    for side in (-1, 1):
        _draw_eye(draw, person, muscles, side)
        _draw_brow(draw, person, muscles, side)
    _draw_nose(draw, person, muscles)
    _draw_cheeks(draw, person, muscles)
    _draw_mouth(draw, person, muscles)
    if person.glasses:
        _draw_glasses(draw, person)

    canvas = canvas.rotate(rng.normal(0, 4), Image.Resampling.BILINEAR, center=_FACE_CENTRE)
    # Crop as face detectors do, from above the brows to the chin.
    half = _FACE_HALF * rng.uniform(0.96, 1.04)
    x, y = rng.normal(_FACE_CENTRE, 3).clip(half, _CANVAS - half)
    face = canvas.resize(
        (SIZE, SIZE), Image.Resampling.BOX, box=(x - half, y - half, x + half, y + half)
    )
    pixels = np.asarray(face, dtype=np.float64)
    # Light from one side, exposure, sensor noise.
    ramp = np.linspace(-1, 1, SIZE)
    light = 1 + rng.normal(0, 0.1) * ramp[None, :, None] + rng.normal(0, 0.06) * ramp[:, None, None]
    pixels = pixels * light * rng.uniform(0.8, 1.15) + rng.normal(0, 5, pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8)


class _Person:
    """Traits that do not depend on the expression: colours and proportions, in canvas pixels."""

    def __init__(self, rng: np.random.Generator) -> None:
        tone = rng.uniform(0.35, 1.0)
        self.skin = _colour(np.array([236, 196, 168]) * tone + rng.normal(0, 5, 3))
        self.shade = _scale(self.skin, 0.72)
        self.deep = _scale(self.skin, 0.5)
        self.lip = _colour(np.array([190, 95, 95]) * (0.35 + 0.65 * tone))
        self.hair = _colour(
            np.array([[35, 28, 25], [80, 52, 32], [150, 105, 60], [120, 120, 120]])[rng.integers(4)]
            + rng.normal(0, 8, 3)
        )
        self.brow = _scale(self.hair, 0.8)
        self.iris = _colour(np.array([[70, 45, 30], [50, 80, 110], [60, 85, 55]])[rng.integers(3)])
        self.background = _colour(np.full(3, rng.uniform(60, 220)) + rng.normal(0, 15, 3))
        self.centre = 96.0
        self.width = rng.uniform(60, 70)
        self.height = rng.uniform(78, 88)
        self.eye_y = rng.uniform(80, 88)
        self.eye_dx = rng.uniform(25, 30)
        self.eye_w = rng.uniform(13, 16)
        self.mouth_y = rng.uniform(137, 145)
        self.mouth_w = rng.uniform(22, 28)
        self.nose_y = rng.uniform(112, 118)
        self.brow_w = rng.uniform(4.5, 7.5)
        self.long_hair = rng.random() < 0.4
        self.glasses = rng.random() < 0.12


def _colour(values: np.ndarray) -> RGB:
    red, green, blue = (int(v) for v in np.clip(values, 0, 255))
    return red, green, blue


def _scale(colour: RGB, factor: float) -> RGB:
    return _colour(np.array(colour) * factor)


def _ellipse(
    draw: ImageDraw.ImageDraw, x: float, y: float, rx: float, ry: float, fill: RGB
) -> None:
    draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill)


def _arc(x0: float, x1: float, y: float, sag: float, points: int = 17) -> list[tuple[float, float]]:
    """Return a parabola from `(x0, y)` to `(x1, y)` whose middle lies `sag` lower."""
    t = np.linspace(-1, 1, points)
    xs = (x0 + x1) / 2 + (x1 - x0) / 2 * t
    return list(zip(xs.tolist(), (y + sag * (1 - t**2)).tolist(), strict=True))


def _draw_head(draw: ImageDraw.ImageDraw, p: _Person) -> None:
    if p.long_hair:
        _ellipse(draw, p.centre, 104, p.width + 14, p.height + 8, p.hair)
    else:
        _ellipse(draw, p.centre, 82, p.width + 6, p.height - 8, p.hair)
    for side in (-1, 1):
        _ellipse(draw, p.centre + side * p.width, 100, 9, 15, p.shade)
    _ellipse(draw, p.centre, 104, p.width, p.height, p.skin)
    # Fringe: the top of the head, cut off above the brows.
    draw.chord(
        (p.centre - p.width, 104 - p.height, p.centre + p.width, 104 + p.height * 0.4),
        205, 335, fill=p.hair,
    )  # fmt: skip


def _draw_eye(draw: ImageDraw.ImageDraw, p: _Person, m: Muscles, side: int) -> None:
    x, y, w = p.centre + side * p.eye_dx, p.eye_y, p.eye_w
    opening = max(1.5, 8.0 * (1 + 0.85 * m.eye_open))
    lower = max(0.5, opening * (0.8 - 0.5 * max(0.0, m.lower_lid)))
    outline = _arc(x - w, x + w, y, -opening) + _arc(x + w, x - w, y, lower)
    draw.polygon(outline, fill=(245, 243, 240))
    # The iris is cut off by the lids: draw only the part between them.
    radius = 6.5
    for dx in np.arange(-radius, radius + 0.5, 0.5):
        half = float(np.sqrt(radius**2 - dx**2))
        lid = 1 - (dx / w) ** 2
        top, bottom = max(-half, -opening * lid), min(half, lower * lid)
        if bottom > top:
            draw.line((x + dx, y + top, x + dx, y + bottom), fill=p.iris)
    pupil = min(3.2, opening * 0.7)
    _ellipse(draw, x, y + min(0.0, lower - 3.2), pupil, min(pupil, lower + 1), (15, 12, 12))
    draw.line(_arc(x - w, x + w, y, -opening), fill=_scale(p.deep, 0.5), width=4)
    draw.line(_arc(x - w, x + w, y, lower), fill=p.shade, width=2)


def _draw_brow(draw: ImageDraw.ImageDraw, p: _Person, m: Muscles, side: int) -> None:
    base = p.eye_y - 19
    inner_x = p.centre + side * (p.eye_dx - 15 - 5 * m.brow_knit)
    outer_x = p.centre + side * (p.eye_dx + 17)
    inner = (inner_x, base - 10 * m.brow_inner)
    outer = (outer_x, base + 2 - 9 * m.brow_outer)
    lift = 4 + 3 * max(0.0, m.brow_outer)
    middle = ((inner_x + outer_x) / 2, (inner[1] + outer[1]) / 2 - lift)
    draw.line([inner, middle, outer], fill=p.brow, width=round(p.brow_w), joint="curve")
    if m.brow_knit > 0.25:
        x = p.centre + side * 4
        draw.line((x, base - 4, x - side, base + 8), fill=p.shade, width=3)


def _draw_nose(draw: ImageDraw.ImageDraw, p: _Person, m: Muscles) -> None:
    draw.line((p.centre - 5, p.eye_y + 6, p.centre - 8, p.nose_y - 4), fill=p.shade, width=3)
    tip = p.nose_y - 4 * m.nose_wrinkle
    draw.line(_arc(p.centre - 11, p.centre + 11, tip, 6), fill=p.shade, width=4)
    for side in (-1, 1):
        _ellipse(draw, p.centre + side * 6, tip + 3, 3, 2, p.deep)
        if m.nose_wrinkle > 0.2:
            for k in range(3):
                y = p.eye_y + 4 + 7 * k
                ends = (p.centre + side * 2, y + 3, p.centre + side * 11, y - 2)
                draw.line(ends, fill=p.deep, width=round(1 + 2.5 * m.nose_wrinkle))


def _draw_cheeks(draw: ImageDraw.ImageDraw, p: _Person, m: Muscles) -> None:
    fold = max(m.cheeks, 0.8 * m.nose_wrinkle, 0.0)
    if fold < 0.25:
        return
    for side in (-1, 1):
        start = (p.centre + side * 15, p.nose_y)
        end = (p.centre + side * (p.mouth_w + 11), p.mouth_y - 4)
        middle = (p.centre + side * (p.mouth_w + 4), p.nose_y + 8)
        draw.line([start, middle, end], fill=p.shade, width=round(1 + 3 * fold), joint="curve")


def _draw_mouth(draw: ImageDraw.ImageDraw, p: _Person, m: Muscles) -> None:
    half = p.mouth_w * (1 + 0.42 * m.mouth_wide)
    x0, x1 = p.centre - half, p.centre + half
    gap = max(0.0, 26 * m.mouth_open)
    bend = 15 * m.mouth_curve
    y = p.mouth_y - bend * 0.5
    raised = 7 * max(0.0, m.lip_raise)
    upper = _arc(x0, x1, y, bend - gap * 0.35 - raised)
    lower = _arc(x0, x1, y, bend + gap * 0.65 + 0.3 * raised)
    if gap + raised > 5:
        draw.polygon(upper + lower[::-1], fill=(60, 20, 25))
        if m.mouth_curve > 0.25 or m.lip_raise > 0.2:
            teeth = min(9.0, 0.5 * (gap + raised))
            bite = [
                (x, min(top + teeth, low)) for (x, top), (_, low) in zip(upper, lower, strict=True)
            ]
            draw.polygon(upper + bite[::-1], fill=(240, 238, 230))
    draw.line(upper, fill=p.lip, width=5, joint="curve")
    draw.line(lower, fill=p.lip, width=6, joint="curve")


def _draw_glasses(draw: ImageDraw.ImageDraw, p: _Person) -> None:
    frame = (30, 30, 35)
    for side in (-1, 1):
        x, y = p.centre + side * p.eye_dx, p.eye_y + 1
        draw.ellipse((x - 21, y - 17, x + 21, y + 17), outline=frame, width=3)
        draw.line((x + side * 21, y, p.centre + side * p.width, y - 3), fill=frame, width=3)
    draw.line((p.centre - 6, p.eye_y, p.centre + 6, p.eye_y), fill=frame, width=3)
