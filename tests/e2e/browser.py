"""Label Studio's editor in headless Chromium, driven by mouse and keyboard as an annotator would."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, Response, sync_playwright

from .label_studio import EMAIL, PASSWORD

FLAGS = [
    "--headless=new",
    "--no-sandbox",  # Chromium refuses to run as root with its sandbox
    "--no-proxy-server",
    "--no-first-run",
    "--disable-gpu",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]

# Where the photo is in the window, once it is drawn: [left, top, width, height] in CSS pixels. Only the
# editor's own state knows that: the canvas may be larger, and it exists before the photo is loaded.
PHOTO_BOX = """() => {
    const annotation = window.dataManager?.lsf?.lsf?.annotationStore?.selected;
    const photo = annotation?.objects.find(object => object.type === 'image');
    if (!photo?.imageEntities?.[0]?.imageLoaded || !photo.stageRef || photo.stageWidth <= 1) return null;
    const canvas = document.querySelector('.konvajs-content').getBoundingClientRect();
    const frame = photo.stageRef.getAbsoluteTransform();
    const [from, to] = [{x: 0, y: 0}, {x: photo.stageWidth, y: photo.stageHeight}].map(p => frame.point(p));
    return [canvas.x + from.x, canvas.y + from.y, to.x - from.x, to.y - from.y];
}"""


@dataclass(frozen=True, slots=True)
class Answer:
    """One interactive prediction as the editor asked for it and got it."""

    request: dict[str, Any]
    reply: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Editor:
    """A browser window in which the test's user is logged in."""

    page: Page
    url: str
    pictures: Path
    script_errors: list[str]

    def open_task(self, project: int, task: int) -> None:
        """Open a task and wait until its photo is drawn."""
        self.page.goto(f"{self.url}/projects/{project}/data?task={task}")
        self.page.wait_for_function(PHOTO_BOX)
        self.page.wait_for_timeout(500)

    def prepare_clicks(self) -> None:
        """Switch Auto-Annotation on and take the Auto-Detect tool."""
        switch = self.page.get_by_test_id("bottombar-auto-annotation-toggle")
        if not switch.is_checked():
            switch.evaluate("element => element.click()")  # the checkbox itself is hidden under its slider
        self.page.locator(".lsf-tool_smart").first.click()

    def click(self, x: float, y: float, hotkey: str, positive: bool = True, *, on_region: bool = False) -> Answer:
        """Click at (x, y), fractions of the photo's width and height, and wait for the mask.

        Label Studio lets go of the label after every click, so `hotkey` takes it anew. With Alt the click is
        negative. On a region a click selects it, unless Control is held.
        """
        left, top, width, height = self.page.wait_for_function(PHOTO_BOX).json_value()
        self.page.keyboard.press(hotkey)
        held = ["Control"] * on_region + ["Alt"] * (not positive)
        with self.page.expect_response(_is_interactive) as waiting:
            for key in held:
                self.page.keyboard.down(key)
            self.page.mouse.click(left + x * width, top + y * height)
            for key in held:
                self.page.keyboard.up(key)
        response = waiting.value
        self.page.wait_for_timeout(500)  # until the mask is drawn
        return Answer(response.request.post_data_json, response.json())

    def drag(self, start: tuple[float, float], end: tuple[float, float], width: int, height: int) -> None:
        """Drag the mouse with the tool in hand between two pixels of a photo of this size."""
        left, top, *shown = self.page.wait_for_function(PHOTO_BOX).json_value()
        (x, y), (end_x, end_y) = (
            (left + (column + 0.5) / width * shown[0], top + (row + 0.5) / height * shown[1])
            for column, row in (start, end)
        )
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(end_x, end_y, steps=8)
        self.page.mouse.up()

    def accept(self) -> None:
        """Accept the suggested mask with the button in the bottom bar."""
        self.page.get_by_test_id("bottombar-accept-suggestions-button").click()
        self.page.wait_for_timeout(500)

    def submit(self) -> None:
        """Submit the annotation and wait until Label Studio has stored it."""
        with self.page.expect_response(_is_submission) as waiting:
            self.page.get_by_test_id("bottombar-submit-button").click()
        if not waiting.value.ok:
            raise RuntimeError(f"the annotation was refused with status {waiting.value.status}")
        self.page.get_by_test_id("bottombar-update-button").wait_for()  # the editor has loaded it back
        self.page.wait_for_function(PHOTO_BOX)
        self.page.wait_for_timeout(500)

    def update(self) -> None:
        """Update a submitted annotation and wait until Label Studio has stored it."""
        with self.page.expect_response(_is_update) as waiting:
            self.page.get_by_test_id("bottombar-update-button").click()
        if not waiting.value.ok:
            raise RuntimeError(f"the update was refused with status {waiting.value.status}")
        self.page.wait_for_function(PHOTO_BOX)  # the editor has loaded it back
        self.page.wait_for_timeout(500)

    def picture(self, name: str) -> None:
        """Save what the window shows now."""
        self.page.screenshot(path=self.pictures / f"{name}.png")


def _is_interactive(response: Response) -> bool:
    return "/interactive-annotating" in response.url


def _is_submission(response: Response) -> bool:
    return response.request.method == "POST" and "/annotations" in response.url


def _is_update(response: Response) -> bool:
    return response.request.method == "PATCH" and "/annotations" in response.url


def find_chromium() -> str:
    """The path of Chromium: what the variable CHROMIUM names, or `chromium` on the search path."""
    program = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    if program is None:
        raise RuntimeError("no Chromium found: install Debian's package `chromium`, or set CHROMIUM to its path")
    return program


@contextmanager
def editor(url: str, pictures: Path) -> Iterator[Editor]:
    """A window of a fresh browser, logged in at the Label Studio at `url`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS, timeout=120_000)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(120_000)
        script_errors: list[str] = []
        page.on("pageerror", lambda error: script_errors.append(str(error)))
        try:
            _log_in(page, url)
            yield Editor(page, url, pictures, script_errors)
        except BaseException:
            page.screenshot(path=pictures / "failed.png")
            raise
        finally:
            browser.close()


def _log_in(page: Page, url: str) -> None:
    page.goto(f"{url}/user/login/")
    page.fill("input[name=email]", EMAIL)
    page.fill("input[name=password]", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_url(lambda address: "/user/login" not in address)
