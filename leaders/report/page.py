"""Pages: a template, filled in, with its pictures inside."""

from __future__ import annotations

import base64
import io
import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image


def page(template: str, **values: Any) -> str:
    """A page, from one of the templates beside this file. Whatever is put in is text: markup in it is shown, not obeyed."""
    return _templates().get_template(template).render(values)


@lru_cache(maxsize=1)
def _templates() -> Environment:
    loader = PackageLoader("leaders.report", ".")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"number": number, "signed": signed, "error": error, "known": math.isfinite}
    return made


def number(value: float | None) -> str:
    """A number as people read it: four significant digits, thousands apart; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}".replace("-", "−")
    text = f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:#.4g}" if abs(value) >= 1e-3 else f"{value:.2e}"
    return text.rstrip(".").replace("-", "−")


def error(value: float) -> str:
    """An error: two significant digits."""
    return f"{value:.2g}" if math.isfinite(value) else "∞"


def signed(value: float) -> str:
    """A change: with its sign."""
    return f"+{number(value)}" if value > 0 else number(value)


def embedded(content: bytes, kind: str = "png") -> str:
    """A picture as the source of an ``img``."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def figure_png(figure: Any) -> bytes:
    """A matplotlib figure."""
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format="png")
    return content.getvalue()


def array_png(frame: npt.NDArray[np.uint8]) -> bytes:
    """A picture ``(H, W, 3)``."""
    content = io.BytesIO()
    Image.fromarray(frame).save(content, "PNG")
    return content.getvalue()


def is_wide(content: bytes) -> bool:
    """Whether a picture needs the page's whole width to be read."""
    return Image.open(io.BytesIO(content)).width > _HALF


#: Pixels up to which two pictures stand side by side.
_HALF = 900
