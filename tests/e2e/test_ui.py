"""Protects the page /ui: what a person tries there works, in a real browser, behind a password, with no other host.

Screenshots go to e2e-output/ui/.
"""

import json
import os
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Response, sync_playwright

from bench.serving.loopback import free_port

from .browser import FLAGS, find_chromium
from .masks import brush_alpha
from .processes import ROOT, server

pytestmark = pytest.mark.e2e

OUTPUT = ROOT / "e2e-output" / "ui"
PHOTO = Path(__file__).parent / "photos" / "coffee.jpg"
WIDTH, HEIGHT = 600, 400
LOGIN = {"username": "someone", "password": "secret"}

CUP, SAUCER = (290, 110), (430, 250)  # pixels of the sample photo


@dataclass
class Window:
    """The page, and what went wrong in it."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    def predict(self, x: float, y: float, button: str = "left") -> Response:
        """Click at a pixel of the photo and wait until the answer is drawn."""
        box = self.page.locator("#photo").bounding_box()
        width, height = self.page.evaluate(
            "[document.getElementById('photo').width, document.getElementById('photo').height]"
        )
        position = {"x": (x + 0.5) / width * box["width"], "y": (y + 0.5) / height * box["height"]}
        with self.page.expect_response(lambda response: response.url.endswith("/predict")) as waiting:
            self.page.locator("#photo").click(button=button, position=position)
        self.page.locator("#answer", has_text="answered in").wait_for()
        return waiting.value

    def paint(self, *path: tuple[float, float]) -> Response:
        """Draw a stroke through pixels of the photo and wait until the answer is drawn."""
        box = self.page.locator("#photo").bounding_box()
        corners = [
            (box["x"] + (x + 0.5) / WIDTH * box["width"], box["y"] + (y + 0.5) / HEIGHT * box["height"])
            for x, y in path
        ]
        with self.page.expect_response(lambda response: response.url.endswith("/predict")) as waiting:
            self.page.mouse.move(*corners[0])
            self.page.mouse.down()
            for corner in corners[1:]:
                self.page.mouse.move(*corner, steps=5)
            self.page.mouse.up()
        self.page.locator("#answer", has_text="answered in").wait_for()
        return waiting.value

    def answer(self) -> str:
        return self.page.locator("#answer").inner_text().strip()

    def pixels(self) -> np.ndarray:
        """What the canvas shows, uint8 (H, W, 3)."""
        data = self.page.evaluate(
            """() => { const c = document.getElementById('photo');
            return [c.height, c.width, Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)] }"""
        )
        return np.array(data[2], np.uint8).reshape(data[0], data[1], 4)[:, :, :3]

    def picture(self, name: str) -> None:
        self.page.screenshot(path=OUTPUT / f"{name}.png", full_page=True)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The backend as `make serve` starts it, with a password."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    python = os.environ.get("BACKEND_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HOST": "127.0.0.1", "PORT": str(port), "MODEL_DIR": str(OUTPUT / "models")}
    environment |= {
        "DEVICE": "cpu",
        "DTYPE": "float32",
        "PREDICT": "similar",
        "BASIC_AUTH_USER": LOGIN["username"],
        "BASIC_AUTH_PASS": LOGIN["password"],
    }
    address = f"http://127.0.0.1:{port}"
    with server([python, "-m", "backend"], environment, OUTPUT / "backend.log", f"{address}/health", patience=180):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS, timeout=120_000)
        yield browser
        browser.close()


def open_page(browser: Browser, url: str, **options: object) -> Window:
    page = browser.new_context(http_credentials=LOGIN, **options).new_page()
    page.set_default_timeout(60_000)
    window = Window(page)
    page.on("pageerror", lambda error: window.complaints.append(str(error)))
    page.on("console", lambda line: window.complaints.append(line.text) if line.type == "error" else None)
    page.on("request", lambda request: window.addresses.append(request.url))
    page.goto(f"{url}/ui")
    page.locator("#readiness.ready").wait_for()
    return window


@pytest.fixture
def window(browser: Browser, url: str) -> Iterator[Window]:
    window = open_page(browser, url, viewport={"width": 1280, "height": 900})
    yield window
    window.page.context.close()
    assert window.complaints == []
    assert [address for address in window.addresses if not address.startswith((f"{url}/", "data:", "blob:"))] == []


def take_sample(window: Window) -> None:
    window.page.get_by_role("button", name="Sample photo").click()
    window.page.locator("#answer", has_text="prepared in").wait_for()


def test_the_status_is_shown(window: Window) -> None:
    window.page.locator("#caches tr").first.wait_for()
    facts = window.page.locator("#status").inner_text()
    for words in ("skipclick", "cpu", "float32", "448 × 448", "memo", "None yet"):
        assert words in facts, words
    window.picture("1-opened")


def test_clicks_give_the_mask_that_the_server_answers(window: Window) -> None:
    take_sample(window)
    plain = window.pixels()
    response = window.predict(*CUP)
    assert "1 click ·" in window.answer()
    assert " ms" in window.answer()
    window.picture("2-left-click")
    rle = response.json()["results"][0]["result"][0]["value"]["rle"]
    mask = brush_alpha(rle, HEIGHT, WIDTH) > 0
    assert mask[CUP[1], CUP[0]]
    changed = (window.pixels() != plain).any(axis=2)
    near = np.hypot(*np.ogrid[-CUP[1] : HEIGHT - CUP[1], -CUP[0] : WIDTH - CUP[0]]) < 25  # the click's own mark
    assert (changed == mask)[~near].mean() > 0.999  # a tint may leave a pixel's colour as it is
    window.predict(*SAUCER, button="right")
    assert "2 clicks ·" in window.answer()
    window.picture("3-right-click")
    window.page.get_by_role("button", name="Undo").click()
    window.page.locator("#answer", has_text="1 click ·").wait_for()
    window.page.get_by_role("button", name="Clear").click()
    assert window.answer() == ""
    np.testing.assert_array_equal(window.pixels(), plain)
    assert window.page.get_by_role("button", name="Undo").is_disabled()


def test_it_sends_what_label_studio_sends(window: Window) -> None:
    take_sample(window)
    window.predict(*CUP)
    window.page.get_by_label("not the object").check()
    body = window.predict(*SAUCER).request.post_data_json
    first, second = body["params"]["context"]["result"]
    for item, (x, y), positive in ((first, CUP, True), (second, SAUCER, False)):
        assert (item["original_width"], item["original_height"], item["is_positive"]) == (WIDTH, HEIGHT, positive)
        assert item["value"]["x"] / 100 * WIDTH == pytest.approx(x + 0.5, abs=1)
        assert item["value"]["y"] / 100 * HEIGHT == pytest.approx(y + 0.5, abs=1)


def mask_of(response: Response) -> np.ndarray:
    """The mask that the server answered, bool (H, W)."""
    rle = response.json()["results"][0]["result"][0]["value"]["rle"]
    return brush_alpha(rle, HEIGHT, WIDTH) > 0


def test_strokes_say_what_is_the_object_and_what_is_not(window: Window) -> None:
    take_sample(window)
    response = window.paint((220, 90), (290, 60), (350, 90))
    assert "1 stroke ·" in window.answer()
    (item,) = response.request.post_data_json["params"]["context"]["result"]
    stroke = brush_alpha(item["value"]["rle"], HEIGHT, WIDTH) > 0
    assert (item["type"], item["is_positive"]) == ("brushlabels", True)
    assert stroke[60, 290]
    assert stroke[90, 220]
    assert 500 < stroke.sum() < 5000
    before = mask_of(response)
    assert before[stroke].all()
    window.picture("9-stroke")
    window.page.get_by_label("not the object").check()
    response = window.paint((400, 230), (450, 270))
    item = response.request.post_data_json["params"]["context"]["result"][1]
    negative = brush_alpha(item["value"]["rle"], HEIGHT, WIDTH) > 0
    after = mask_of(response)
    assert not after[negative].any()
    assert after[stroke].all()
    assert "2 strokes ·" in window.answer()
    window.picture("10-negative-stroke")
    window.page.get_by_role("button", name="Undo").click()
    window.page.locator("#answer", has_text="1 stroke ·").wait_for()


def test_it_begins_with_a_mask_from_a_file(window: Window) -> None:
    take_sample(window)
    plain = window.pixels()
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    cup = ((x - 290) / 120) ** 2 + ((y - 130) / 110) ** 2 <= 1
    file = BytesIO()
    Image.fromarray(cup).save(file, "PNG")
    window.page.locator("#begin").set_input_files({"name": "m.png", "mimeType": "image/png", "buffer": file.getvalue()})
    window.page.locator("#answer", has_text="click where the mask is wrong").wait_for()
    deadline = time.monotonic() + 30  # it is drawn after the words are there
    while not ((window.pixels() != plain).any(axis=2) == cup).mean() > 0.999:
        assert time.monotonic() < deadline
    window.picture("11-begun-with-a-mask")
    response = window.predict(*SAUCER)
    after = mask_of(response)
    assert after[SAUCER[1], SAUCER[0]]
    assert (after & cup).sum() > 0.5 * cup.sum(), "the rest of the mask stayed"
    window.picture("12-corrected")
    window.page.get_by_role("button", name="Undo").click()
    window.page.locator("#answer", has_text="click where the mask is wrong").wait_for()
    window.page.get_by_role("button", name="Clear").click()
    np.testing.assert_array_equal(window.pixels(), plain)
    small = BytesIO()
    Image.new("1", (60, 40)).save(small, "PNG")
    window.page.locator("#begin").set_input_files(
        {"name": "s.png", "mimeType": "image/png", "buffer": small.getvalue()}
    )
    window.page.locator("#answer.error", has_text="60 × 40 pixels, the photo 600 × 400").wait_for()


def test_a_dropped_photo_that_lies_on_its_side_is_seen_upright(window: Window) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = BytesIO()
    Image.open(PHOTO).save(file, "JPEG", exif=exif)
    window.page.evaluate(
        """data => {
            const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0)), transfer = new DataTransfer();
            transfer.items.add(new File([bytes], 'photo.jpg', {type: 'image/jpeg'}));
            document.getElementById('stage').dispatchEvent(
                new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        b64encode(file.getvalue()).decode(),
    )
    window.page.locator("#answer", has_text="prepared in").wait_for()
    response = window.predict(HEIGHT - 1 - CUP[1], CUP[0])
    (region,) = response.json()["results"][0]["result"]
    assert (region["original_width"], region["original_height"]) == (HEIGHT, WIDTH)
    window.picture("4-upright")


def test_a_file_that_is_no_image_is_refused_with_a_sentence(window: Window) -> None:
    window.page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
    window.page.locator("#answer.error", has_text="no image that a browser can show").wait_for()


def test_an_error_of_the_server_is_shown(window: Window) -> None:
    file = BytesIO()
    Image.new("1", (10_000, 9_000)).save(file, "PNG")
    window.page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": file.getvalue()})
    window.page.locator("#answer.error", has_text="IMAGE_MAX_PIXELS").wait_for()
    window.picture("5-error")
    window.complaints.clear()  # the browser notes the status 400


def test_the_keyboard_is_enough(window: Window) -> None:
    window.page.get_by_role("button", name="Sample photo").focus()
    window.page.keyboard.press("Enter")
    window.page.locator("#answer", has_text="prepared in").wait_for()
    window.page.locator("#photo").focus()
    for key in ("ArrowLeft", "Shift+ArrowUp", "Enter"):
        window.page.keyboard.press(key)
    window.page.locator("#answer", has_text="1 click ·").wait_for()
    for key in ("Shift+ArrowDown", "Shift+ArrowDown", "-"):
        window.page.keyboard.press(key)
    window.page.locator("#answer", has_text="2 clicks ·").wait_for()
    window.picture("6-keyboard")
    window.page.keyboard.press("Backspace")
    window.page.locator("#answer", has_text="1 click ·").wait_for()
    window.page.keyboard.press("Escape")
    assert window.answer() == ""


def test_a_small_screen_in_the_dark(browser: Browser, url: str) -> None:
    window = open_page(browser, url, viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True)
    take_sample(window)
    window.predict(*CUP)
    assert window.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    window.picture("7-small")
    window.page.context.close()


def test_the_last_training_is_shown_with_its_picture(window: Window) -> None:
    """Its files come while the page is open."""
    jobs = OUTPUT / "models" / "jobs" / "12"
    jobs.mkdir(parents=True)
    Image.open(PHOTO).resize((960, 640)).save(jobs / "0001.png")
    job = {"project": 12, "number": 1, "asked_by": "32 new objects", "created_at": "2026-01-01T00:00:00.000+00:00"}
    job |= {"state": "done", "version": "skipclick-lite+p12.v1", "promoted": True, "reason": "fewer clicks"}
    (jobs / "0001.tmp").write_text(json.dumps(job))
    (jobs / "0001.tmp").rename(jobs / "0001.json")
    picture = window.page.get_by_role("img", name="Clicks before and after training 1 of project 12")
    picture.wait_for()
    window.page.wait_for_function("document.querySelector('#learnt img').naturalWidth === 960")
    assert "skipclick-lite+p12.v1 promoted · fewer clicks" in window.page.locator("#jobs").inner_text()
    window.picture("8-learnt")
    window.page.get_by_text("project 12, #1").last.click()
    picture.wait_for(state="hidden")
    with window.page.expect_response("**/status"):
        pass  # what the reader folded stays folded
    assert not picture.is_visible()


def test_each_project_s_proposals_are_shown_with_what_was_measured(window: Window) -> None:
    measured = {"objects": 12, "proposals": 11, "precision": 0.8182, "recall": 0.75, "helps": True}
    bad = {"objects": 40, "proposals": 0, "recall": 0.0, "helps": False}
    for project, found in ((13, measured), (14, bad), (15, None)):
        folder = OUTPUT / "models" / "versions" / str(project)
        (folder / "v2").mkdir(parents=True)
        about = {"base": "skipclick-lite", "backbone": "", "head": ""} | ({} if found is None else {"proposals": found})
        (folder / "v2" / "about.json").write_text(json.dumps(about))
        (folder / "current").write_text("v2\n")
    lines = window.page.locator("#proposals dd")
    window.page.locator("#proposals dd").nth(2).wait_for()
    assert lines.all_inner_texts() == [
        "on · precision 82 %, recall 75 % · 11 proposed for 12 held-out objects · skipclick-lite+p13.v2",
        "off, not good enough · recall 0 % · 0 proposed for 40 held-out objects · skipclick-lite+p14.v2",
        "off, its training did not measure them · skipclick-lite+p15.v2",
    ]
    window.picture("13-proposals")


def test_without_the_password_there_is_no_page(browser: Browser, url: str) -> None:
    context = browser.new_context()
    for path in ("ui", "ui/page.js", "status", "openapi.json"):
        assert context.request.get(f"{url}/{path}").status == 401
    context.close()
