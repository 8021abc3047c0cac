"""A page to play on: ``python -m leaders.play four-rooms --regularization 0.01`` opens it in a browser.

Sliders move x; where it has many components, they are chosen on a map of x, and one slider moves those. What both sides
get under the follower's exact answer, and its picture, follow. A button takes steps of exact gradient ascent while one watches.
Environments, and their options, are those of ``python -m leaders.train``.

The page is served on this machine alone. ``--port`` chooses the port, ``--no-show`` leaves the browser closed. It needs Panel:
``pip install 'bocmdp-gym[play]'``.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from PIL import Image

from bocmdp_gym.errors import BOCMDPError, OptionError
from leaders.brush import Brush
from leaders.playground import Playground
from leaders.train import parse

#: Components of x that have a slider each; where there are more, one slider moves those that are chosen.
SLIDERS = 12
#: Components of x that are drawn on a map, at most.
DRAWN = 5_000
_PERIOD = 200  # milliseconds from one gradient step to the next
_TALLEST = 520  # pixels of the picture


class Page:
    """The page: its widgets, and what happens when they are moved.

    Args:
        playground: what is played with.
        title: of the page.

    Attributes:
        sliders: one per component of x, or a single one for those that are chosen.
        brush: the map on which components are chosen for the single slider; None with a slider each, and where there is no map.
        component: which component the single slider moves, where there is no map.
        step, run, reset: take one gradient step; go on taking them; go back to the start.
        leader_return: the mean of the leader's returns.
        steps: gradient steps taken.
        layout: everything.

    Raises:
        OptionError: Panel is not installed.
    """

    def __init__(self, playground: Playground, title: str):
        pn = _panel()
        self._playground, self._quiet, self._waiting, self._ticking = playground, False, False, None
        d = len(playground.x)
        many = d > SLIDERS
        outlines = playground.outlines() if many and d <= DRAWN else None
        self.brush = None if outlines is None else Brush(outlines, self._choose)
        self.component = pn.widgets.IntSlider(label="component of x", start=0, end=d - 1) if many and not self.brush else None
        names = ["value of what is chosen"] if many else [f"x{i}" for i in range(d)]
        self.sliders = [pn.widgets.FloatSlider(label=name) for name in names]
        self._moves = [[i] for i in range(d)] if not many else [[]] if self.brush else [[0]]  # the components that each one moves
        self._follow()
        contexts = list(range(playground.n_contexts))
        self.context = pn.widgets.Select(label="context of the picture", options=contexts, visible=len(contexts) > 1)
        self.step = pn.widgets.Button(label="One gradient step", color="primary")
        self.run = pn.widgets.Toggle(label="Keep climbing")
        self.reset = pn.widgets.Button(label="Back to the start")
        self.leader_return = pn.indicators.Number(
            label="leader's return", format="{value:.4f}", font_size="28pt", title_size="11pt"
        )
        self.returns = pn.pane.HTML()
        self.picture = pn.pane.Image()
        self.steps = 0
        for slider in self.sliders:
            slider.param.watch(self._moved, "value")
        if self.component is not None:
            self.component.param.watch(lambda event: self._choose([event.new]), "value")
        self.context.param.watch(lambda event: self._draw_picture(), "value")
        self.step.on_click(lambda event: self.climb())
        self.reset.on_click(lambda event: self._back())
        self.run.param.watch(self._toggled, "value")
        chooser = self.component if self.brush is None else pn.pane.Bokeh(self.brush.figure)
        moved = self.sliders if chooser is None else [chooser, *self.sliders]
        controls = pn.Column(self.step, self.run, self.reset, self.context, *moved, width=330)
        seen = pn.Column(self.leader_return, self.returns, self.picture)
        parts = pn.FlexBox(controls, seen, gap="24px", sizing_mode="stretch_width")  # one below the other where it is narrow
        self.layout = pn.Column(f"# {title}", parts, sizing_mode="stretch_width")
        self._draw()

    def climb(self) -> None:
        """Take a gradient step, and show where it led."""
        self._playground.step()
        self.steps += 1
        self._follow()
        self._draw()

    def _back(self) -> None:
        self._playground.move(self._playground.start)
        self._follow()
        self._draw()

    def _moved(self, event: Any) -> None:
        """A slider was moved: by a hand, unless it followed x."""
        if self._quiet:
            return
        x = self._playground.x
        for components, slider in zip(self._moves, self.sliders, strict=True):
            if event.obj is slider:
                x[components] = slider.value
        self._playground.move(x)
        self._draw()

    def _choose(self, components: list[int]) -> None:
        """Let the single slider move these."""
        self._moves = [components]
        self._follow()

    def _follow(self) -> None:
        """Let the sliders show x: the mean of what they move."""
        self._quiet = True
        try:
            x = self._playground.x
            low, high = np.minimum(self._playground.low, x), np.maximum(self._playground.high, x)
            for components, slider in zip(self._moves, self.sliders, strict=True):
                slider.disabled = not components
                if components:
                    start, end = float(low[components].min()), float(high[components].max())
                    slider.param.update(start=start, end=end, step=(end - start) / 200, value=float(x[components].mean()))
        finally:
            self._quiet = False

    def _toggled(self, event: Any) -> None:
        if event.new:
            self._ticking = _panel().state.add_periodic_callback(self.climb, _PERIOD)
        elif self._ticking is not None:
            self._ticking.stop()

    def _draw(self) -> None:
        """Show what both sides get, and then, once the browser has that, the picture."""
        view = self._playground.look()
        if self.brush is not None:
            self.brush.show(self._playground.x)
        self.leader_return.value = view.leader_return
        rows = [
            f"<tr><td>{context}</td><td>{leader:.4f}</td><td>{follower:.4f}</td></tr>"
            for context, (leader, follower) in enumerate(zip(view.leader, view.follower, strict=True))
        ]
        head = "<tr><th>context</th><th>leader</th><th>follower</th></tr>"
        self.returns.object = f'<table style="text-align: right; border-spacing: 16px 2px">{head}{"".join(rows)}</table>'
        if not self._waiting:
            self._waiting = True
            _panel().state.execute(self._draw_picture, schedule=True)

    def _draw_picture(self) -> None:
        self._waiting = False
        picture = self._playground.picture(self.context.value)
        self.picture.visible = picture is not None
        if picture is not None:
            self.picture.param.update(object=Image.fromarray(picture), height=min(_TALLEST, len(picture)))


def _panel() -> Any:
    try:
        import panel
    except ImportError:
        raise OptionError("leaders.play needs Panel, which is not installed: pip install 'bocmdp-gym[play]'.") from None
    return panel


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 for settings that cannot work."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--port", type=int, default=0)
    own.add_argument("--no-show", action="store_true")
    chosen, rest = own.parse_known_args(arguments)
    try:
        pn, settings = _panel(), parse(rest)
        Playground(settings)  # refused here, not in the browser
    except BOCMDPError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    title = f"{settings.name}, lambda = {settings.regularization:g}"
    pn.serve(lambda: Page(Playground(settings), title).layout, port=chosen.port, show=not chosen.no_show, title=title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
