"""The page without a browser, and in one where Chromium and Playwright are installed."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaders.play import SLIDERS, Page, main
from leaders.playground import Playground
from leaders.settings import settings_from_values

pytest.importorskip("panel", reason="the page needs Panel: pip install 'bocmdp-gym[play]'")
CHROMIUM = shutil.which("chromium")
TAXES: dict[str, Any] = {"grid_size": 11, "horizon": 10}
ROOMS: dict[str, Any] = {"regularization": 0.05, "horizon": 20}


def _page(name: str, values: dict[str, Any]) -> tuple[Playground, Page]:
    playground = Playground(settings_from_values(name, values))
    return playground, Page(playground, name)


def test_a_slider_moves_the_number_and_the_picture() -> None:
    playground, page = _page("tax-design", TAXES)
    assert len(page.sliders) == 4
    before, picture = page.leader_return.value, np.asarray(page.picture.object)
    page.sliders[1].value = 1.5
    assert playground.x[1] == 1.5
    assert page.leader_return.value != before
    assert page.leader_return.value == pytest.approx(playground.look().leader_return, abs=1e-9)
    assert (np.asarray(page.picture.object) != picture).any()
    assert f"{playground.look().follower[1]:.4f}" in page.returns.object


def test_gradient_steps_move_the_sliders() -> None:
    playground, page = _page("tax-design", TAXES)
    before = page.leader_return.value
    page.step.clicks += 1
    assert page.leader_return.value > before
    assert [slider.value for slider in page.sliders] == playground.x.tolist()
    page.reset.clicks += 1
    assert page.leader_return.value == pytest.approx(before, abs=1e-9)


def test_many_components_share_a_slider() -> None:
    playground, page = _page("four-rooms", ROOMS)
    assert len(playground.x) > SLIDERS
    assert page.component is not None
    start = playground.x
    for component, value in ((3, 2.0), (104, -1.0)):
        page.component.value = component
        assert page.sliders[0].value == start[component]
        page.sliders[0].value = value
        start[component] = value
        np.testing.assert_array_equal(playground.x, start)


def test_settings_that_cannot_be_played_with_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["four-rooms", "--regularization", "0", "--no-show"]) == 2
    assert "RegularizationError" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the server's sockets, when its thread ends
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_sees_the_number_change(tmp_path: Path) -> None:
    """A slider is moved with the keyboard, and the button pressed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    import panel

    _, page = _page("tax-design", TAXES)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server: Any = panel.serve(page.layout, port=port, show=False, threaded=True)
    try:
        with playwright.sync_playwright() as started:
            browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1300, "height": 800})
            tab.goto(f"http://localhost:{port}")
            shown = tab.get_by_text(f"{page.leader_return.value:.4f}")
            shown.wait_for()
            handle = tab.locator(".noUi-handle").nth(1)
            handle.focus()
            handle.press("ArrowRight")
            shown.wait_for(state="detached")
            before = page.leader_return.value
            tab.get_by_text(f"{before:.4f}").wait_for()
            tab.get_by_text("One gradient step").click()
            tab.get_by_text(f"{before:.4f}").wait_for(state="detached")
            tab.get_by_text(f"{page.leader_return.value:.4f}").wait_for()
            assert page.leader_return.value > before
            tab.screenshot(path=tmp_path / "play.png")
            browser.close()
    finally:
        server.stop()
