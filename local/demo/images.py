"""The demo world's pictures: drawn, one style a topic, each different by its seed."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

WIDTH, HEIGHT = 800, 600
CONTENT_TYPE = "image/jpeg"
_MAX_BYTES = 60_000
# Tried in turn until the picture is small enough; only the busiest need more than the first.
_QUALITIES = (82, 70, 55, 35)

Colour = tuple[int, int, int]
Point = tuple[float, float]
Scene = Callable[[ImageDraw.ImageDraw, Random, tuple[Colour, ...]], None]


@dataclass(frozen=True, slots=True)
class _Style:
    """A palette, from the background's top and bottom to the figures, and who draws them."""

    palette: tuple[Colour, ...]
    scene: Scene


def draw(topic: str, seed: int) -> bytes:
    """A JPEG of 800 x 600 pixels and at most 60 kB; equal arguments give equal pictures.

    Raises KeyError on a topic that has no style.
    """
    style = _STYLES[topic]
    random = Random(f"{topic} {seed}")
    top, bottom, *figures = style.palette
    # Drawn at twice the size and reduced: Pillow's shapes have hard edges.
    image = _gradient(top, bottom)
    pen = ImageDraw.Draw(image, "RGBA")
    style.scene(pen, random, tuple(figures))
    image = image.reduce(2)
    for quality in _QUALITIES:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        if file.tell() <= _MAX_BYTES:
            break
    return file.getvalue()


# -- scenes, on a canvas of 1600 x 1200 -----------------------------------------------------------

_W, _H = 2 * WIDTH, 2 * HEIGHT


def _night(pen: ImageDraw.ImageDraw, random: Random, colours: tuple[Colour, ...]) -> None:
    """A sky of stars over a ridge, with a moon."""
    star, moon, ridge = colours
    for _ in range(260):
        x, y, r = random.uniform(0, _W), random.uniform(0, _H * 0.8), random.paretovariate(1.6)
        _disc(pen, (x, y), min(r, 6) + 0.8, (*star, random.randint(110, 255)))
    centre, radius = (random.uniform(300, 1300), random.uniform(200, 450)), random.uniform(60, 130)
    for glow in range(6, 0, -1):
        _disc(pen, centre, radius + glow * 14, (*moon, 14))
    _disc(pen, centre, radius, (*moon, 255))
    for _ in range(5):
        angle, away = random.uniform(0, math.tau), random.uniform(0, radius * 0.7)
        spot = (centre[0] + away * math.cos(angle), centre[1] + away * math.sin(angle))
        _disc(pen, spot, random.uniform(6, 18), (*ridge, 40))
    _ridge(pen, random, _H * 0.86, 70, (*ridge, 255))


def _hills(pen: ImageDraw.ImageDraw, random: Random, colours: tuple[Colour, ...]) -> None:
    """Ridges behind ridges under a low sun, some with trees."""
    sun, *ridges = colours
    centre = (random.uniform(200, 1400), random.uniform(220, 480))
    for glow in range(5, 0, -1):
        _disc(pen, centre, 90 + glow * 26, (*sun, 20))
    _disc(pen, centre, 90, (*sun, 255))
    for depth, colour in enumerate(ridges):
        level = _H * (0.5 + 0.16 * depth)
        line = _ridge(pen, random, level, 130 - 25 * depth, (*colour, 255))
        if depth > 0:
            for x, y in random.sample(line[5:-5], 7 * depth):
                height = random.uniform(40, 80) * (1 + depth)
                shade = _mix(colour, (10, 25, 20), 0.35)
                pen.polygon([(x - height / 4, y + 8), (x, y - height), (x + height / 4, y + 8)],
                            fill=shade)  # fmt: skip


def _cups(pen: ImageDraw.ImageDraw, random: Random, colours: tuple[Colour, ...]) -> None:
    """Round things on a table seen from above: plates, cups, bowls."""
    plate, cup, content, foam = colours
    for column in range(3):
        for row in range(2):
            centre = (
                300 + 500 * column + random.uniform(-60, 60),
                320 + 560 * row + random.uniform(-50, 50),
            )
            radius = random.uniform(150, 235)
            _disc(pen, (centre[0] + 14, centre[1] + 20), radius, (0, 0, 0, 45))
            _disc(pen, centre, radius, (*plate, 255))
            _disc(pen, centre, radius * 0.72, (*cup, 255))
            _disc(pen, centre, radius * 0.62, (*_mix(content, cup, random.uniform(0, 0.3)), 255))
            leaves = random.choice((0, 3, 5, 7))
            for leaf in range(leaves):
                angle = math.tau * leaf / leaves + random.uniform(0, 0.3)
                spot = (
                    centre[0] + radius * 0.3 * math.cos(angle),
                    centre[1] + radius * 0.3 * math.sin(angle),
                )
                _disc(pen, spot, radius * 0.15, (*foam, 215))
            _disc(pen, centre, radius * 0.16, (*foam, 235))


def _boards(pen: ImageDraw.ImageDraw, random: Random, colours: tuple[Colour, ...]) -> None:
    """A board of squares, turned a little, with pieces on it."""
    light, dark, *pieces = colours
    turn, side = random.uniform(-0.35, 0.35), random.choice((130, 150, 170))

    def at(column: float, row: float) -> Point:
        x, y = (column - 4) * side, (row - 4) * side
        return (
            _W / 2 + x * math.cos(turn) - y * math.sin(turn),
            _H / 2 + x * math.sin(turn) + y * math.cos(turn),
        )

    for column in range(-4, 12):
        for row in range(-4, 12):
            corners = [
                at(column, row), at(column + 1, row), at(column + 1, row + 1), at(column, row + 1),
            ]  # fmt: skip
            pen.polygon(corners, fill=light if (column + row) % 2 else dark)
    for place in random.sample(range(64), 14):
        x, y = at(place % 8 + 0.5, place // 8 + 0.5)
        colour = random.choice(pieces)
        _disc(pen, (x + 9, y + 12), side * 0.36, (0, 0, 0, 70))
        _disc(pen, (x, y), side * 0.36, (*colour, 255))
        _disc(pen, (x, y), side * 0.26, (*_mix(colour, (255, 255, 255), 0.22), 255))


def _weave(pen: ImageDraw.ImageDraw, random: Random, colours: tuple[Colour, ...]) -> None:
    """Rows of knitted stitches in bands of a repeating pattern."""
    stitch = 80
    period = random.choice((6, 8, 10))
    motif = [
        [random.randrange(len(colours)) for _ in range(period // 2 + 1)] for _ in range(period)
    ]
    for row in range(_H // stitch + 2):
        for column in range(_W // stitch + 1):
            place = column % period
            colour = colours[motif[row % period][min(place, period - place)]]
            x, y = column * stitch, row * stitch - stitch
            half, dark = stitch / 2, _mix(colour, (0, 0, 0), 0.14)
            pen.polygon([(x, y), (x + half, y + half), (x + half, y + 2 * half + 14),
                         (x, y + half + 14)], fill=colour)  # fmt: skip
            pen.polygon([(x + stitch, y), (x + half, y + half), (x + half, y + 2 * half + 14),
                         (x + stitch, y + half + 14)], fill=dark)  # fmt: skip


def _circuit(pen: ImageDraw.ImageDraw, random: Random, colours: tuple[Colour, ...]) -> None:
    """Tracks with bends of 45 degrees, pads and chips."""
    track, pad, chip = colours
    for _ in range(46):
        x, y = float(random.randrange(0, _W, 40)), float(random.randrange(0, _H, 40))
        points: list[Point] = [(x, y)]
        heading = random.randrange(8)
        for _ in range(random.randint(2, 5)):
            length = random.randrange(80, 320, 40)
            step = (round(math.cos(heading * math.pi / 4)), round(math.sin(heading * math.pi / 4)))
            x, y = x + step[0] * length, y + step[1] * length
            points.append((x, y))
            heading += random.choice((-1, 1))
        pen.line(points, fill=(*track, 255), width=10, joint="curve")
        for end in (points[0], points[-1]):
            _disc(pen, end, 17, (*pad, 255))
            _disc(pen, end, 7, (*chip, 255))
    for _ in range(random.randint(3, 5)):
        left, top = random.randrange(100, _W - 400, 40), random.randrange(100, _H - 300, 40)
        right = left + random.randrange(160, 320, 40)
        bottom = top + random.randrange(120, 240, 40)
        for pin in range(left + 20, right, 40):
            pen.rectangle((pin - 7, top - 22, pin + 7, bottom + 22), fill=pad)
        pen.rounded_rectangle((left, top, right, bottom), 12, fill=chip)
        _disc(pen, (left + 26, top + 26), 9, (*pad, 160))


def _chart(pen: ImageDraw.ImageDraw, random: Random, colours: tuple[Colour, ...]) -> None:
    """Bars, a curve over them, and scattered points."""
    grid, *bars, curve = colours
    for height in range(150, 1100, 150):
        pen.line([(100, height), (1500, height)], fill=(*grid, 110), width=3)
    count = random.choice((8, 10, 14))
    wide = 1360 / count
    level, tops = random.uniform(0.25, 0.5), []
    for bar in range(count):
        level = min(max(level + random.uniform(-0.12, 0.18), 0.08), 0.92)
        x, top = 120 + bar * wide, 1050 - 880 * level
        tops.append((x + wide * 0.4, top - random.uniform(10, 90)))
        pen.rounded_rectangle((x, top, x + wide * 0.8, 1050), 14, fill=random.choice(bars))
    pen.line(tops, fill=(*curve, 255), width=12, joint="curve")
    for x, y in tops:
        _disc(pen, (x, y), 17, (*curve, 255))
    for _ in range(60):
        x, y = random.choice(tops)
        spot = (x + random.gauss(0, 60), y + random.gauss(0, 90))
        _disc(pen, spot, random.uniform(4, 9), (*curve, 110))


def _rings(pen: ImageDraw.ImageDraw, random: Random, colours: tuple[Colour, ...]) -> None:
    """Grooves around a centre: a record, a tree's rings, a wheel."""
    centre = (random.uniform(500, 1100), random.uniform(450, 750))
    wobble, phase = random.uniform(0, 26), random.uniform(0, math.tau)
    radius = random.uniform(620, 760)
    while radius > 130:
        colour = random.choice(colours[:-1])
        outline = [
            (
                centre[0] + (radius + wobble * math.sin(3 * a + phase)) * math.cos(a),
                centre[1] + (radius + wobble * math.sin(3 * a + phase)) * math.sin(a),
            )
            for a in (math.tau * step / 120 for step in range(120))
        ]
        pen.polygon(outline, fill=(*colour, 255))
        radius -= random.uniform(10, 46)
    _disc(pen, centre, 130, (*colours[-1], 255))
    _disc(pen, centre, 22, (*colours[0], 255))


def _leaves(pen: ImageDraw.ImageDraw, random: Random, colours: tuple[Colour, ...]) -> None:
    """Stems with leaves, some in flower."""
    *greens, petal, heart = colours
    for _ in range(13):
        x, y = random.uniform(0, _W), float(_H)
        lean, tall = random.uniform(-0.25, 0.25), random.randint(7, 14)
        green = random.choice(greens)
        for node in range(tall):
            onward = (x + 75 * math.sin(lean), y - 75 * math.cos(lean))
            pen.line([(x, y), onward], fill=green, width=10)
            side = lean + (1 if node % 2 else -1) * random.uniform(0.7, 1.1)
            _leaf(pen, onward, side, random.uniform(70, 120), _mix(green, (255, 255, 200), 0.12))
            x, y = onward
            lean += random.uniform(-0.12, 0.12)
        if random.random() < 0.7:
            size = random.uniform(28, 50)
            for angle in range(0, 360, 45):
                turn = math.radians(angle)
                _disc(pen, (x + size * math.sin(turn), y - size * math.cos(turn)), size * 0.6,
                      (*petal, 235))  # fmt: skip
            _disc(pen, (x, y), size * 0.6, (*heart, 255))


def _town(pen: ImageDraw.ImageDraw, random: Random, colours: tuple[Colour, ...]) -> None:
    """House fronts in rows, with lit windows."""
    window, *walls = colours
    for row, level in enumerate((760, 980, 1200)):
        x = -random.uniform(0, 120)
        while x < _W:
            wide, high = random.uniform(120, 230), random.uniform(240, 520) - row * 60
            wall = _mix(random.choice(walls), (20, 22, 40), 0.3 - 0.15 * row)
            pen.rectangle((x, level - high, x + wide - 8, level), fill=wall)
            if random.random() < 0.5:
                eaves, peak = level - high, (x + wide / 2, level - high - wide * 0.4)
                roof = _mix(wall, (0, 0, 0), 0.3)
                pen.polygon([(x - 8, eaves), peak, (x + wide, eaves)], fill=roof)
            for column in range(int(wide // 55)):
                for floor in range(int(high // 75)):
                    if random.random() < 0.6:
                        left, top = x + 16 + column * 52, level - high + 24 + floor * 72
                        pen.rectangle((left, top, left + 26, top + 38), fill=(*window, 230))
            x += wide


def _waves(pen: ImageDraw.ImageDraw, random: Random, colours: tuple[Colour, ...]) -> None:
    """Overlapping waves of different length, like sound or speech."""
    for wave, colour in enumerate(colours * 2):
        level = _H * (0.2 + 0.62 * wave / (2 * len(colours) - 1))
        tall, length = random.uniform(40, 150), random.uniform(160, 520)
        phase, beat = random.uniform(0, math.tau), random.uniform(500, 1500)
        points = [
            (x, level + tall * math.sin(x / length * math.tau + phase) * math.cos(x / beat))
            for x in range(-20, _W + 21, 20)
        ]
        pen.line(points, fill=(*colour, 220), width=random.choice((8, 14, 26)), joint="curve")


# -- shapes ---------------------------------------------------------------------------------------


def _gradient(top: Colour, bottom: Colour) -> Image.Image:
    column = Image.new("RGB", (1, HEIGHT))
    for y in range(HEIGHT):
        column.putpixel((0, y), _mix(top, bottom, y / HEIGHT))
    return column.resize((_W, _H), Image.Resampling.NEAREST)


def _ridge(
    pen: ImageDraw.ImageDraw,
    random: Random,
    level: float,
    rough: float,
    fill: tuple[int, int, int, int],
) -> list[Point]:
    """A mountain ridge across the canvas, filled to the bottom; returns its line."""
    waves = [
        (rough / n, random.uniform(0.002, 0.004) * n, random.uniform(0, math.tau))
        for n in range(1, 6)
    ]
    line = [
        (float(x), level + sum(tall * math.sin(x * pace + at) for tall, pace, at in waves))
        for x in range(-20, _W + 21, 20)
    ]
    pen.polygon([(-20, _H), *line, (_W + 20, _H)], fill=fill)
    return line


def _leaf(
    pen: ImageDraw.ImageDraw, base: Point, heading: float, length: float, fill: Colour
) -> None:
    outline = []
    for step in range(21):
        along = step / 10 if step <= 10 else 2 - step / 10
        wide = math.sin(along * math.pi) * length * 0.22 * (1 if step <= 10 else -1)
        x, y = wide, -along * length
        outline.append(
            (
                base[0] + x * math.cos(heading) - y * math.sin(heading),
                base[1] + x * math.sin(heading) + y * math.cos(heading),
            )
        )
    pen.polygon(outline, fill=fill)


def _disc(
    pen: ImageDraw.ImageDraw, centre: Point, radius: float, fill: tuple[int, int, int, int]
) -> None:
    x, y = centre
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _colours(*codes: str) -> tuple[Colour, ...]:
    return tuple((int(c[0:2], 16), int(c[2:4], 16), int(c[4:6], 16)) for c in codes)


def _style(scene: Scene, codes: str) -> _Style:
    return _Style(_colours(*codes.split()), scene)


_STYLES = {
    "astronomy": _style(_night, "0b1026 2b3a67 f4f1de ffe8b6 0a0d1a"),
    "baking": _style(_cups, "f6e7cb d9b382 fffaf0 e8c39e b5651d fff3d6"),
    "birdwatching": _style(_hills, "cfe8ef f7e1b5 fff4c2 8fb8a8 5b8e7d 2f5d50"),
    "board_games": _style(_boards, "264653 2a9d8f e9c46a d9a441 e76f51 264653 2a9d8f"),
    "bouldering": _style(_hills, "f2c6a0 c97b63 ffe5b4 b08968 7f5539 4a2f1d"),
    "chess": _style(_boards, "3b2f2f 1f1a17 f0d9b5 b58863 f7f3ea 2b2320"),
    "coffee": _style(_cups, "c7a17a 7b4b2a fdf8f2 efe3d3 4b2e1e e8cfa9"),
    "cycling": _style(_hills, "8ecae6 fefae0 ffb703 8ab17d 52796f 2f3e46"),
    "databases": _style(_chart, "0d1b2a 1b263b 778da9 415a77 5fa8d3 62b6cb ffd166"),
    "electronics_repair": _style(_circuit, "0f3d2e 0a2a20 2f9e6b e0b65a 10201a"),
    "gardening": _style(_leaves, "e9f5db cfe1b9 2d6a4f 40916c 74a57f ef798a ffd166"),
    "home_recording": _style(_waves, "10002b 3c096c ff9e00 ff6d00 9d4edd e0aaff"),
    "jazz": _style(_rings, "2b1d3a 14213d 1b1b1e 24242a 30303a fca311"),
    "knitting": _style(_weave, "f4e9e1 e6ccb2 9d4b4b f1e3d3 33658a 86bbd8"),
    "language_learning": _style(_waves, "fdf0d5 f6bd60 c1121f 003049 669bbc 84a59d"),
    "machine_learning": _style(_chart, "1a1423 372549 b75d69 774c60 b75d69 eacdc2 7ae7c7"),
    "personal_finance": _style(_chart, "f1faee d8e8dc 457b9d a8dadc 457b9d 1d3557 e63946"),
    "photography": _style(_hills, "ff9a76 5b4b8a ffe3c0 7a5c94 4b3f72 1f2041"),
    "pottery": _style(_rings, "ead7c3 c9a98a b08968 a47148 ddb892 7f4f24"),
    "python_programming": _style(_circuit, "1e2a44 16213a 4b8bbe ffd43b 0d1526"),
    "robotics": _style(_circuit, "dfe7ee b8c6d1 90a4b4 ef6f53 2f3b46"),
    "trail_running": _style(_hills, "bde0fe ffc8a2 fff1c1 94a89a 5c7a60 33523b"),
    "urban_planning": _style(_town, "ffb38a 5c6b9c ffe9a8 8a5a6b 4f6d8f b07a5b 6b7f7a"),
    "woodworking": _style(_rings, "e6d3b3 c2a37c c69c6d b58450 d9b382 8b5a2b"),
}
