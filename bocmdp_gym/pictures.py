"""Pictures: what tabular environments share when they are rendered, and a drawing of states as a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.tabular_env import TabularEnv

Array = npt.NDArray[np.float64]
Colour = tuple[int, int, int]
BACKGROUND: Colour = (250, 250, 248)
INK: Colour = (40, 44, 52)
AGENT: Colour = (38, 104, 190)
#: One colour per action or person, in this order.
PALETTE: tuple[Colour, ...] = ((214, 95, 14), (44, 140, 96), (120, 94, 180), (196, 60, 110), (60, 150, 190), (140, 120, 20))
_OVERSAMPLING = 2  # drawn at twice the size and shrunk: smooth edges


class Pictures:
    """What environments with pictures share: subclasses define `picture`, and `text` where they have mode "ansi"."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 4}
    render_mode: str | None
    _figure: Any = None

    def picture(self) -> npt.NDArray[np.uint8]:
        """The running episode under x as an RGB array ``(H, W, 3)``."""
        raise NotImplementedError

    def text(self) -> str:
        """The same as text."""
        raise UnsupportedError(f"{type(self).__name__} has no text rendering; use render_mode='rgb_array'.")

    def render(self) -> Any:
        """`picture`, `text` or a window, by ``render_mode``."""
        if self.render_mode is None:
            return None
        if self.render_mode == "ansi":
            return self.text()
        frame = self.picture()
        if self.render_mode == "human":
            self._show(frame)
            return None
        return frame

    def _show(self, frame: npt.NDArray[np.uint8]) -> None:
        import matplotlib.pyplot as plt

        if self._figure is None:
            plt.ion()
            self._figure = plt.figure(figsize=(6 * frame.shape[1] / frame.shape[0], 6))
            axes = self._figure.add_axes((0, 0, 1, 1))
            axes.axis("off")
            self._image = axes.imshow(frame)
        self._image.set_data(frame)
        self._figure.canvas.draw_idle()
        plt.pause(1.0 / self.metadata["render_fps"])

    def close(self) -> None:
        if self._figure is not None:
            import matplotlib.pyplot as plt

            plt.close(self._figure)
            self._figure = None


class PicturedEnv(Pictures, TabularEnv):
    """A tabular environment with pictures."""


class Canvas:
    """A drawing surface in pixels, origin at the top left; smooth edges.

    Args:
        width, height: size in pixels.
    """

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self._image = Image.new("RGB", (width * _OVERSAMPLING, height * _OVERSAMPLING), BACKGROUND)
        self._draw = ImageDraw.Draw(self._image)

    def line(self, start: Sequence[float], end: Sequence[float], colour: Colour, width: float = 1.0) -> None:
        """A straight line."""
        points = [v * _OVERSAMPLING for v in (*start, *end)]
        self._draw.line(points, fill=colour, width=max(1, round(width * _OVERSAMPLING)))

    def disc(self, centre: Sequence[float], radius: float, fill: Colour, outline: Colour = INK, width: float = 1.0) -> None:
        """A disc with an outline."""
        x, y = centre
        box = [v * _OVERSAMPLING for v in (x - radius, y - radius, x + radius, y + radius)]
        self._draw.ellipse(box, fill=fill, outline=outline, width=max(1, round(width * _OVERSAMPLING)))

    def rectangle(self, box: Sequence[float], fill: Colour | None, outline: Colour | None = None, width: float = 1.0) -> None:
        """A rectangle (left, top, right, bottom)."""
        scaled = [v * _OVERSAMPLING for v in box]
        self._draw.rectangle(scaled, fill=fill, outline=outline, width=max(1, round(width * _OVERSAMPLING)))

    def text(self, position: Sequence[float], text: str, size: float = 13, colour: Colour = INK, anchor: str = "mm") -> None:
        """Text, anchored as Pillow does ("mm": its middle at ``position``, "la": its top left corner)."""
        x, y = position
        font = ImageFont.load_default(size=size * _OVERSAMPLING)
        self._draw.text((x * _OVERSAMPLING, y * _OVERSAMPLING), text, fill=colour, font=font, anchor=anchor)

    def array(self) -> npt.NDArray[np.uint8]:
        """The picture, uint8 ``(H, W, 3)``."""
        return np.asarray(self._image.reduce(_OVERSAMPLING), dtype=np.uint8)


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """The colour ``share`` of the way from first to second."""
    share = min(max(float(share), 0.0), 1.0)
    mixed = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    r, g, b = mixed
    return r, g, b


def signed_colour(value: float) -> Colour:
    """-1 is red, 0 white, 1 green."""
    return blend((255, 255, 255), (30, 140, 70) if value > 0 else (205, 50, 40), abs(value))
