"""`Brush`: a map of x on which components are chosen: the outline of each, coloured by its value. Part of `leaders.play`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_WIDTH = 330  # pixels
_TALLEST = 480


class Brush:
    """A map of x: a click chooses a component, with shift one more; a box chooses all that lie in it.

    Args:
        outlines: of the components, corners ``(n, 2)`` of each, y upwards (`bocmdp_gym.Hooks.leader_outlines`).
        chosen: called with the components chosen, whenever these are others.

    Attributes:
        source: what is drawn; ``source.selected.indices`` are the components chosen.
        figure: the map.
    """

    def __init__(self, outlines: Sequence[Array], chosen: Callable[[list[int]], None]):
        from bokeh.models import ColumnDataSource, HoverTool, LinearColorMapper
        from bokeh.models.annotations import ColorBar
        from bokeh.plotting import figure

        corners = np.concatenate([np.asarray(one) for one in outlines])
        width, height = np.ptp(corners, axis=0)
        self.source = ColumnDataSource(
            {
                "xs": [one[:, 0].tolist() for one in outlines],
                "ys": [one[:, 1].tolist() for one in outlines],
                "component": list(range(len(outlines))),
                "value": [0.0] * len(outlines),
            }
        )
        self._colours = LinearColorMapper(palette="Viridis256")
        self.figure: Any = figure(
            width=_WIDTH,
            height=int(min(_WIDTH * height / width + 80, _TALLEST)),
            tools="tap,box_select,pan,wheel_zoom,reset",
            active_tap="tap",
            active_drag="box_select",
            match_aspect=True,
            toolbar_location="below",
        )
        self.figure.axis.visible = self.figure.grid.visible = False
        style: dict[str, Any] = {
            "fill_color": {"field": "value", "transform": self._colours},
            "line_color": "white",
            "line_width": 0.5,
            "nonselection_fill_alpha": 1.0,
            "selection_line_color": "#d62728",
            "selection_line_width": 3,
        }
        drawn = self.figure.patches("xs", "ys", source=self.source, **style)
        self.figure.add_tools(HoverTool(tooltips=[("x", "@component"), ("value", "@value{0.000}")], renderers=[drawn]))
        self.figure.add_layout(ColorBar(color_mapper=self._colours, height=10, padding=4), "above")
        self.source.selected.on_change("indices", lambda attribute, before, after: chosen([int(i) for i in after]))

    def show(self, x: Array) -> None:
        """Colour the map by x ``(d,)``."""
        low, high = float(x.min()), float(x.max())
        self._colours.update(low=low, high=high if high > low else low + 1.0)
        self.source.patch({"value": [(slice(len(x)), x.tolist())]})
