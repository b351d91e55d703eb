"""How the things of the world look: one small drawing per category, in a unit square, in paint roles.

One drawing serves every colour; `sprites` turns it into pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .pen import Pen


def _tree(pen: Pen) -> None:
    pen.box("wood", 0.42, 0.55, 0.58, 1.0)
    for x, y, r in ((0.27, 0.45, 0.2), (0.73, 0.45, 0.2), (0.5, 0.27, 0.27), (0.5, 0.48, 0.2)):
        pen.oval("main", x, y, r, r)
    pen.arc("shade", 0.5, 0.32, 0.14, 0.14, 200, 300, 0.05)


def _flower(pen: Pen) -> None:
    pen.line("leaf", [(0.5, 0.5), (0.5, 1.0)], 0.07)
    pen.area("leaf", [(0.5, 0.88), (0.72, 0.66), (0.78, 0.74)])
    pen.area("leaf", [(0.5, 0.94), (0.28, 0.74), (0.22, 0.82)])
    for i in range(6):
        turn = math.pi * i / 3
        pen.oval("main", 0.5 + 0.2 * math.cos(turn), 0.31 + 0.2 * math.sin(turn), 0.13, 0.13)
    pen.oval("detail", 0.5, 0.31, 0.1, 0.1)


def _sheep(pen: Pen) -> None:
    for x in (0.36, 0.5, 0.7, 0.82):
        pen.line("outline", [(x, 0.62), (x, 0.88)], 0.06)
    for x, y, r in (
        (0.38, 0.42, 0.15),
        (0.55, 0.34, 0.16),
        (0.73, 0.38, 0.16),
        (0.84, 0.52, 0.13),
        (0.68, 0.58, 0.16),
        (0.46, 0.58, 0.15),
        (0.58, 0.48, 0.18),
    ):
        pen.oval("main", x, y, r, r)
    pen.oval("outline", 0.2, 0.4, 0.14, 0.17)
    pen.oval("detail", 0.2, 0.4, 0.13, 0.16)
    pen.oval("white", 0.16, 0.36, 0.035, 0.035)


def _kite(pen: Pen) -> None:
    pen.line("detail", [(0.5, 0.72), (0.6, 0.8), (0.46, 0.88), (0.58, 1.0)], 0.05)
    pen.line("outline", [(0.58, 1.0), (0.58, 1.0)], 0.01)
    pen.area("main", [(0.5, 0.0), (0.84, 0.32), (0.5, 0.74), (0.16, 0.32)])
    pen.line("detail", [(0.5, 0.03), (0.5, 0.72)], 0.04)
    pen.line("detail", [(0.19, 0.32), (0.81, 0.32)], 0.04)


def _cup(pen: Pen) -> None:
    pen.arc("main", 0.7, 0.5, 0.2, 0.2, -90, 90, 0.1)
    pen.area("main", [(0.06, 0.14), (0.76, 0.14), (0.68, 0.92), (0.14, 0.92)])
    pen.oval("main", 0.41, 0.14, 0.35, 0.1)
    pen.oval("detail", 0.41, 0.14, 0.27, 0.06)


def _bottle(pen: Pen) -> None:
    pen.area(
        "main",
        [(0.41, 0.1), (0.59, 0.1), (0.59, 0.3), (0.73, 0.44), (0.73, 1.0), (0.27, 1.0), (0.27, 0.44), (0.41, 0.3)],
    )
    pen.box("outline", 0.39, 0.0, 0.61, 0.1)
    pen.box("white", 0.27, 0.58, 0.73, 0.8)
    pen.line("shade", [(0.35, 0.69), (0.65, 0.69)], 0.05)


def _apple(pen: Pen) -> None:
    pen.line("wood", [(0.5, 0.3), (0.53, 0.1)], 0.07)
    pen.area("leaf", [(0.54, 0.2), (0.68, 0.04), (0.88, 0.06), (0.76, 0.2)])
    pen.oval("main", 0.34, 0.6, 0.29, 0.35)
    pen.oval("main", 0.66, 0.6, 0.29, 0.35)
    pen.oval("main", 0.5, 0.66, 0.25, 0.3)
    pen.oval("white", 0.25, 0.47, 0.06, 0.09)


def _clock(pen: Pen) -> None:
    for x in (0.2, 0.8):
        pen.oval("main", x, 0.14, 0.15, 0.12)
        pen.line("main", [(x, 0.9), (x + (0.5 - x) / 4, 0.82)], 0.1)
    pen.oval("main", 0.5, 0.53, 0.43, 0.43)
    pen.oval("white", 0.5, 0.53, 0.28, 0.28)
    pen.line("outline", [(0.5, 0.37), (0.5, 0.53), (0.62, 0.6)], 0.01)


def _car(pen: Pen) -> None:
    pen.area("main", [(0.2, 0.44), (0.32, 0.22), (0.68, 0.22), (0.82, 0.44)])
    pen.area("main", [(0.0, 0.5), (0.06, 0.43), (0.94, 0.43), (1.0, 0.5), (1.0, 0.68), (0.0, 0.68)])
    pen.area("glass", [(0.29, 0.43), (0.36, 0.28), (0.48, 0.28), (0.48, 0.43)])
    pen.area("glass", [(0.54, 0.43), (0.54, 0.28), (0.65, 0.28), (0.73, 0.43)])
    for x in (0.24, 0.76):
        pen.oval("outline", x, 0.69, 0.1, 0.1)
        pen.oval("white", x, 0.69, 0.055, 0.055)


def _house(pen: Pen) -> None:
    pen.box("main", 0.12, 0.44, 0.88, 1.0)
    pen.area("shade", [(0.0, 0.46), (0.5, 0.04), (1.0, 0.46)])
    pen.box("wood", 0.54, 0.66, 0.74, 1.0)
    pen.box("glass", 0.22, 0.58, 0.42, 0.78)


def _bicycle(pen: Pen) -> None:
    for x in (0.22, 0.78):
        pen.arc("main", x, 0.64, 0.19, 0.19, 0, 360, 0.07)
    pen.line("main", [(0.22, 0.64), (0.38, 0.34), (0.66, 0.34), (0.48, 0.64), (0.22, 0.64)], 0.07)
    pen.line("main", [(0.36, 0.26), (0.48, 0.64)], 0.07)
    pen.line("main", [(0.78, 0.64), (0.64, 0.2), (0.76, 0.18)], 0.07)
    pen.line("wood", [(0.28, 0.24), (0.42, 0.24)], 0.07)


def _cone(pen: Pen) -> None:
    pen.area("main", [(0.44, 0.04), (0.56, 0.04), (0.8, 0.86), (0.2, 0.86)])
    pen.area("white", [(0.38, 0.26), (0.62, 0.26), (0.66, 0.4), (0.34, 0.4)])
    pen.area("white", [(0.3, 0.54), (0.7, 0.54), (0.74, 0.68), (0.26, 0.68)])
    pen.box("main", 0.06, 0.86, 0.94, 1.0)


def _boat(pen: Pen) -> None:
    pen.line("wood", [(0.48, 0.04), (0.48, 0.7)], 0.06)
    pen.area("main", [(0.55, 0.08), (0.9, 0.58), (0.55, 0.58)])
    pen.area("white", [(0.42, 0.16), (0.42, 0.58), (0.16, 0.58)])
    pen.line("outline", [(0.42, 0.16), (0.42, 0.58), (0.16, 0.58), (0.42, 0.16)], 0.01)
    pen.area("main", [(0.0, 0.7), (1.0, 0.7), (0.82, 0.96), (0.18, 0.96)])


def _umbrella(pen: Pen) -> None:
    pen.line("wood", [(0.5, 0.4), (0.5, 0.88)], 0.06)
    pen.arc("wood", 0.59, 0.88, 0.09, 0.09, 180, 0, 0.06)
    dome = [(0.5 + 0.5 * math.cos(math.pi * i / 24), 0.52 - 0.46 * math.sin(math.pi * i / 24)) for i in range(25)]
    scallop = [(i / 24, 0.52 - 0.07 * abs(math.sin(math.pi * 3 * i / 24))) for i in range(25)]
    pen.area("main", dome + scallop)
    pen.line("shade", [(0.5, 0.08), (0.34, 0.5)], 0.05)
    pen.line("shade", [(0.5, 0.08), (0.66, 0.5)], 0.05)


def _fish(pen: Pen) -> None:
    pen.area("main", [(0.66, 0.5), (1.0, 0.24), (0.92, 0.5), (1.0, 0.76)])
    pen.area("shade", [(0.3, 0.3), (0.46, 0.1), (0.6, 0.32)])
    pen.oval("main", 0.4, 0.5, 0.39, 0.26)
    pen.area("shade", [(0.42, 0.52), (0.62, 0.46), (0.58, 0.64)])
    pen.oval("white", 0.2, 0.44, 0.075, 0.075)
    pen.oval("outline", 0.19, 0.44, 0.01, 0.01)


def _ball(pen: Pen) -> None:
    pen.oval("main", 0.5, 0.5, 0.47, 0.47)
    pen.arc("detail", 0.02, 0.5, 0.3, 0.42, -58, 58, 0.05)
    pen.arc("detail", 0.98, 0.5, 0.3, 0.42, 122, 238, 0.05)
    pen.line("detail", [(0.05, 0.5), (0.95, 0.5)], 0.05)


def _bed(pen: Pen) -> None:
    pen.box("wood", 0.0, 0.16, 0.1, 0.86)
    pen.box("wood", 0.92, 0.44, 1.0, 0.86)
    pen.area("main", [(0.1, 0.5), (0.34, 0.44), (0.92, 0.44), (0.92, 0.74), (0.1, 0.74)])
    pen.oval("outline", 0.24, 0.42, 0.12, 0.07)
    pen.oval("white", 0.24, 0.42, 0.13, 0.08)
    pen.line("shade", [(0.16, 0.66), (0.88, 0.66)], 0.05)


def _lamp(pen: Pen) -> None:
    pen.line("outline", [(0.5, 0.4), (0.5, 0.92)], 0.04)
    pen.area("main", [(0.34, 0.04), (0.66, 0.04), (0.84, 0.46), (0.16, 0.46)])
    pen.line("shade", [(0.25, 0.4), (0.75, 0.4)], 0.05)
    pen.area("main", [(0.4, 0.9), (0.6, 0.9), (0.72, 1.0), (0.28, 1.0)])


def _book(pen: Pen) -> None:
    pen.area("shade", [(0.14, 0.06), (0.26, 0.0), (0.9, 0.0), (0.9, 0.88), (0.86, 1.0), (0.14, 1.0)])
    pen.area("white", [(0.22, 0.88), (0.88, 0.88), (0.85, 0.96), (0.22, 0.96)])
    pen.box("main", 0.26, 0.0, 0.9, 0.86)
    pen.box("white", 0.4, 0.16, 0.78, 0.26)
    pen.box("white", 0.46, 0.36, 0.72, 0.42)


def _chair(pen: Pen) -> None:
    pen.line("main", [(0.24, 0.04), (0.28, 0.58), (0.22, 1.0)], 0.1)
    pen.area("main", [(0.26, 0.5), (0.78, 0.5), (0.82, 0.62), (0.26, 0.62)])
    pen.line("main", [(0.74, 0.6), (0.8, 1.0)], 0.09)


def _rabbit(pen: Pen) -> None:
    for x, lean in ((0.36, -0.06), (0.64, 0.06)):
        pen.line("main", [(x, 0.5), (x + lean, 0.14)], 0.16)
        pen.line("white", [(x, 0.44), (x + lean, 0.16)], 0.05)
    pen.oval("main", 0.5, 0.68, 0.3, 0.28)
    for x in (0.4, 0.6):
        pen.oval("detail", x, 0.62, 0.045, 0.05)
    pen.oval("white", 0.5, 0.79, 0.09, 0.07)


def _pot(pen: Pen) -> None:
    pen.line("wood", [(0.06, 0.5), (0.94, 0.5)], 0.1)
    pen.oval("wood", 0.5, 0.16, 0.07, 0.07)
    pen.area("main", [(0.16, 0.38), (0.26, 0.24), (0.74, 0.24), (0.84, 0.38)])
    pen.area("main", [(0.16, 0.38), (0.84, 0.38), (0.82, 0.8), (0.72, 0.9), (0.28, 0.9), (0.18, 0.8)])
    pen.line("detail", [(0.17, 0.38), (0.83, 0.38)], 0.04)


def _bus(pen: Pen) -> None:
    pen.area("main", [(0.0, 0.2), (0.05, 0.14), (0.95, 0.14), (1.0, 0.2), (1.0, 0.74), (0.0, 0.74)])
    for x in (0.07, 0.31, 0.55):
        pen.box("glass", x, 0.24, x + 0.18, 0.44)
    pen.box("glass", 0.79, 0.24, 0.94, 0.66)
    for x in (0.22, 0.66):
        pen.oval("outline", x, 0.76, 0.09, 0.09)
        pen.oval("white", x, 0.76, 0.045, 0.045)


def _starfish(pen: Pen) -> None:
    turns = [math.pi * (i / 5 - 0.5) for i in range(10)]
    reach = [0.5 if i % 2 == 0 else 0.24 for i in range(10)]
    pen.area("main", [(0.5 + r * math.cos(t), 0.5 + r * math.sin(t)) for r, t in zip(reach, turns, strict=True)])
    for t in turns[::2]:
        pen.oval("detail", 0.5 + 0.24 * math.cos(t), 0.5 + 0.24 * math.sin(t), 0.035, 0.035)
    pen.oval("detail", 0.5, 0.5, 0.04, 0.04)


def _sock(pen: Pen) -> None:
    pen.area(
        "main",
        [
            (0.36, 0.1),
            (0.72, 0.1),
            (0.72, 0.62),
            (0.64, 0.8),
            (0.3, 0.96),
            (0.14, 0.94),
            (0.1, 0.8),
            (0.18, 0.7),
            (0.36, 0.56),
        ],
    )
    pen.box("white", 0.36, 0.18, 0.72, 0.28)
    pen.area("shade", [(0.14, 0.94), (0.1, 0.8), (0.18, 0.7), (0.32, 0.92), (0.3, 0.96)])
    pen.line("shade", [(0.6, 0.62), (0.68, 0.7)], 0.05)


DRAWINGS: dict[str, Callable[[Pen], None]] = {
    "tree": _tree, "flower": _flower, "sheep": _sheep, "kite": _kite, "rabbit": _rabbit,
    "cup": _cup, "bottle": _bottle, "apple": _apple, "pot": _pot, "clock": _clock,
    "car": _car, "house": _house, "bicycle": _bicycle, "bus": _bus, "cone": _cone,
    "boat": _boat, "umbrella": _umbrella, "fish": _fish, "ball": _ball, "starfish": _starfish,
    "bed": _bed, "lamp": _lamp, "book": _book, "chair": _chair, "sock": _sock,
}  # fmt: skip

DRAWABLE = tuple(DRAWINGS)
