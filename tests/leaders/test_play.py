"""The page without a browser, and in one where Chromium and Playwright are installed."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
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


def test_components_are_chosen_on_a_map() -> None:
    playground, page = _page("four-rooms", ROOMS)
    assert len(playground.x) > SLIDERS
    assert page.component is None
    assert page.brush is not None
    (slider,), expected = page.sliders, playground.x
    assert slider.disabled
    for chosen, value in (([3], 2.0), ([3, 60, 104], -1.0)):
        page.brush.source.selected.indices = chosen
        assert not slider.disabled
        assert slider.value == pytest.approx(expected[chosen].mean())
        slider.value = value
        expected[chosen] = value
        np.testing.assert_array_equal(playground.x, expected)
        np.testing.assert_array_equal(page.brush.source.data["value"], expected)
    page.step.clicks += 1
    np.testing.assert_array_equal(page.brush.source.data["value"], playground.x)
    page.brush.source.selected.indices = []
    assert slider.disabled


def test_without_a_map_a_slider_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaders.play.DRAWN", 104)
    playground, page = _page("four-rooms", ROOMS)
    assert page.brush is None
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


@pytest.fixture
def serve() -> Iterator[Callable[[Page], Any]]:
    """The page in a tab of a browser, once it shows its number."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    import panel

    servers: list[Any] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_(page: Page) -> Any:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            servers.append(panel.serve(page.layout, port=port, show=False, threaded=True))
            tab = browser.new_page(viewport={"width": 1300, "height": 800})
            tab.goto(f"http://localhost:{port}")
            tab.get_by_text(f"{page.leader_return.value:.4f}").wait_for()
            return tab

        yield open_
        browser.close()
    for server in servers:
        server.stop()


def in_a_browser(test: Any) -> Any:
    test = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")(test)  # of sockets, when threads end
    return pytest.mark.slow(pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")(test))


@in_a_browser
def test_a_browser_sees_the_number_change(serve: Any) -> None:
    """A slider is moved with the keyboard, and the button pressed."""
    _, page = _page("tax-design", TAXES)
    before, tab = page.leader_return.value, serve(page)
    handle = tab.locator(".noUi-handle").nth(1)
    handle.focus()
    handle.press("ArrowRight")
    tab.get_by_text(f"{before:.4f}").wait_for(state="detached")
    before = page.leader_return.value
    tab.get_by_text(f"{before:.4f}").wait_for()
    tab.get_by_text("One gradient step").click()
    tab.get_by_text(f"{before:.4f}").wait_for(state="detached")
    tab.get_by_text(f"{page.leader_return.value:.4f}").wait_for()
    assert page.leader_return.value > before


@in_a_browser
def test_a_browser_watches_the_climb(serve: Any) -> None:
    """Pressed once, the number rises by itself; pressed again, it stays."""
    _, page = _page("tax-design", TAXES)
    tab, numbers = serve(page), [page.leader_return.value]
    page.leader_return.param.watch(lambda event: numbers.append(event.new), "value")
    tab.get_by_text("Keep climbing").click()
    tab.get_by_text(f"{numbers[0]:.4f}").wait_for(state="detached")
    while page.steps < 4:
        tab.wait_for_timeout(50)
    tab.get_by_text("Keep climbing").click()
    tab.wait_for_timeout(500)  # for what was under way
    steps = page.steps
    tab.wait_for_timeout(600)  # three of its periods
    assert page.steps == steps
    assert numbers == sorted(set(numbers))
    tab.get_by_text(f"{numbers[-1]:.4f}").wait_for()


@in_a_browser
def test_a_browser_chooses_on_the_map(serve: Any) -> None:
    """A click and a click with shift choose two cells, and the slider moves both."""
    playground, page = _page("four-rooms", ROOMS)
    before, tab, start = page.leader_return.value, serve(page), playground.x
    where = tab.locator(".bk-Canvas").first.bounding_box()
    x, y = where["x"] + 0.35 * where["width"], where["y"] + 0.3 * where["height"]
    tab.mouse.click(x, y)
    tab.wait_for_timeout(600)  # not a double click
    tab.keyboard.down("Shift")
    tab.mouse.click(x, y + 25)
    tab.keyboard.up("Shift")
    handle = tab.locator(".noUi-handle").first
    tab.wait_for_timeout(300)
    handle.focus()
    for _ in range(20):
        handle.press("ArrowRight")
    tab.get_by_text(f"{before:.4f}").wait_for(state="detached")
    tab.wait_for_timeout(500)
    assert len(page.brush.source.selected.indices) == 2
    moved = np.flatnonzero(playground.x != start)
    assert sorted(page.brush.source.selected.indices) == moved.tolist()
    assert len(set(playground.x[moved])) == 1
