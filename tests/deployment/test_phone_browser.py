"""The app for phones in a real browser, with a file as its camera: slow.

python tests/deployment/test_phone_browser.py APP CAR.jpg FOLDER takes pictures of an app with a car's photo.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from selenium.common.exceptions import WebDriverException

import phone
from deployment.phone.build import MODEL, SOURCE, build_app, install_runtime
from deployment.phone.serve import Handler
from deployment.prediction import predict
from deployment.trained import load_trained
from measurements.phone.browser import PAGE_SECONDS, browser, wait_for

pytestmark = pytest.mark.slow

FRAME = (640, 480)  # the size of the camera's pictures
CAMERA = "--use-fake-device-for-media-stream"
INSECURE = "phone.test"  # a name of this machine that browsers do not trust as they trust localhost
GUESSES = "[...guesses.children].map(item => [item.children[1].textContent, item.children[0].value])"
ANSWERED = "/Recognized/.test(document.getElementById('time').textContent)"
TEXT = "document.body.innerText"
MESSAGE = "message.hidden ? '' : message.textContent"
READY = "document.body.dataset.ready === ''"
TOLERANCE = 1e-4
# Of photos that the browser scales, in its own way: the model of these tests learned from 28 photos of one color each, and
# is sensitive to it. A model of real photos differs by 0.001.
SCALED_TOLERANCE = 0.1


class Site:
    """A folder that is served on a port of its own, which is an origin of its own: without permissions and storage.

    Attributes:
        folder: Its files.
        requests: The paths that were asked for.
        sends_model: Whether the model is sent at once, or when this is set.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self.sends_model = threading.Event()
        self.sends_model.set()

        class Recorder(Handler):
            def send_head(handler) -> Any:
                self.requests.append(handler.path)
                if MODEL in handler.path:
                    self.sends_model.wait(PAGE_SECONDS)
                return super().send_head()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Recorder, directory=str(folder)))
        self.origin = f"http://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def served(folder: Path) -> Iterator[Site]:
    site = Site(folder)
    try:
        yield site
    finally:
        site.stop()


@pytest.fixture(scope="module")
def app(trained_run, tmp_path_factory) -> Path:
    return phone.main([str(trained_run), "--output", str(tmp_path_factory.mktemp("phone") / "app")]).folder


@pytest.fixture(scope="module")
def trained(trained_run):
    return load_trained(str(trained_run))


@pytest.fixture(scope="module")
def photos(trained, tmp_path_factory) -> Path:
    """The same picture in several files: four colors, one in each quarter, whose guesses are well apart."""
    folder = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    pictures = [
        Image.fromarray(quarters).resize(FRAME, Image.Resampling.BICUBIC)
        for quarters in draws.integers(0, 256, (150, 2, 2, 3), dtype=np.uint8)
    ]

    def least_gap(picture: Image.Image) -> float:
        """Returns how far the first six guesses are apart, upright and turned."""
        images = [trained.transform(image) for image in (picture, picture.transpose(Image.Transpose.ROTATE_270))]
        ordered = trained.logits(torch.stack(images)).softmax(dim=1).sort(descending=True).values[:, :6]
        return (ordered[:, :-1] - ordered[:, 1:]).min().item()

    picture = max(pictures, key=least_gap)
    picture.save(folder / "frame.jpg", quality=98, subsampling=0)
    picture.save(folder / "photo.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "turned.jpg", quality=98, exif=exif)
    picture.resize((8660, 5774), Image.Resampling.BICUBIC).save(folder / "large.jpg", quality=80)
    (folder / "text.jpg").write_text("This is no photo.")
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (folder / "camera.mjpeg").write_bytes((folder / "frame.jpg").read_bytes() * 30)
    return folder


@pytest.fixture(scope="module")
def driver(photos) -> Iterator[Any]:
    camera = f"--use-file-for-fake-video-capture={photos / 'camera.mjpeg'}"
    with browser(CAMERA, camera, f"--host-resolver-rules=MAP {INSECURE} 127.0.0.1") as driver:
        yield driver


@pytest.fixture
def site(app) -> Iterator[Site]:
    with served(app) as site:
        yield site


def visit(driver: Any, site: Site, *, camera: str = "granted", ready: str = READY) -> None:
    """Opens the app with a camera that is allowed or not, and waits until it can answer."""
    permission = {"permission": {"name": "camera"}, "setting": camera, "origin": site.origin}
    driver.execute_cdp_cmd("Browser.setPermission", permission)
    driver.get(site.origin)
    wait_for(driver, "the app", ready)


def choose(driver: Any, path: Path) -> None:
    driver.find_element("id", "library").send_keys(str(path))


def answer(driver: Any) -> dict[str, float]:
    """Returns the five guesses with their probabilities, best first, as soon as they are there."""
    wait_for(driver, "an answer", ANSWERED)
    return dict(driver.execute_script(f"return {GUESSES}"))


def assert_same(found: dict[str, float], trained: Any, path: Path, *, scaled: bool = False) -> None:
    """Compares with predict.py."""
    (prediction,) = predict(trained, [path])
    assert found == pytest.approx(dict(prediction.classes), abs=SCALED_TOLERANCE if scaled else TOLERANCE)
    assert scaled or list(found) == [name for name, _ in prediction.classes]


def test_the_cameras_picture_is_recognized_as_by_predict(driver, site, trained, photos, tmp_path):
    visit(driver, site)
    wait_for(driver, "the camera", "video.videoWidth")
    frame = driver.execute_async_script(
        "const done = arguments[0];"
        "import('./pixels.js').then(({draw}) => done(draw(video).toDataURL('image/png').split(',')[1]))"
    )
    (tmp_path / "frame.png").write_bytes(base64.b64decode(frame))
    seen, sent = (
        np.asarray(Image.open(path).convert("RGB"), dtype=float)
        for path in (tmp_path / "frame.png", photos / "frame.jpg")
    )
    assert seen.shape == sent.shape and abs(seen - sent).mean() < 12  # of 255: a video has fewer colors
    driver.find_element("id", "shutter").click()
    assert_same(answer(driver), trained, tmp_path / "frame.png")
    assert driver.execute_script("return verdict.textContent") in (*trained.class_names, "Not sure")
    driver.find_element("id", "shutter").click()  # back to the camera
    driver.find_element("id", "live").click()
    assert_same(answer(driver), trained, tmp_path / "frame.png")
    driver.find_element("id", "live").click()
    asked = driver.execute_async_script(  # twice at once, as when the button is pressed while the person is asked
        "const done = arguments[0], devices = navigator.mediaDevices, original = devices.getUserMedia.bind(devices);"
        "let asked = 0; devices.getUserMedia = (wish) => (asked++, original(wish));"
        "import('./camera.js').then(({ start }) => Promise.all([start(() => {}), start(() => {})])).then(() => done(asked))"
    )
    assert asked == 1


@pytest.mark.parametrize("name", ["photo.png", "turned.jpg", "large.jpg"])
def test_a_chosen_photo_is_recognized_as_by_predict(driver, site, trained, photos, name):
    visit(driver, site)
    choose(driver, photos / name)
    assert_same(answer(driver), trained, photos / name, scaled=name == "large.jpg")


def test_a_photo_may_be_chosen_before_the_model_has_arrived(driver, app, trained, photos):
    with served(app) as site:
        site.sends_model.clear()
        visit(driver, site, ready="document.readyState === 'complete'")
        choose(driver, photos / "photo.png")
        wait_for(driver, "the photo", "verdict.textContent", lambda text: text.startswith("Recognizing"))
        assert driver.execute_script(f"return {MESSAGE}") == "" and not driver.execute_script(f"return {READY}")
        site.sends_model.set()
        assert_same(answer(driver), trained, photos / "photo.png")


def test_the_app_is_not_sure_below_the_threshold_of_its_score(driver, app, trained, photos, tmp_path):
    about = json.loads((app / "model.json").read_text("utf-8"))
    (prediction,) = predict(trained, [photos / "photo.png"])
    (_, first), (_, second) = prediction.classes[:2]
    between = ((first - second) + first) / 2
    verdicts = {}
    for score, threshold in (("probability", between), ("margin", between), ("probability", 1.1)):
        folder = build_app(app / MODEL, about | {"score": score, "threshold": threshold}, tmp_path / "app").folder
        with served(folder) as site:
            visit(driver, site)
            choose(driver, photos / "photo.png")
            assert len(answer(driver)) == 5
            verdicts[score, threshold] = driver.execute_script("return verdict.textContent")
    assert list(verdicts.values()) == [prediction.classes[0][0], "Not sure", "Not sure"]


def test_over_plain_http_photos_are_recognized_without_the_camera(driver, site, trained, photos):
    driver.get(site.origin.replace("localhost", INSECURE))
    wait_for(driver, "the app", READY)
    assert "only over https" in driver.execute_script("return note.textContent")
    assert "only with a network" in driver.execute_script("return offline.textContent")
    driver.find_element("id", "phone-camera").send_keys(str(photos / "photo.png"))
    assert_same(answer(driver), trained, photos / "photo.png")


def test_the_commands_that_publish_the_app_are_right(app, trained_run, tmp_path):
    guide = (SOURCE.parents[2] / "docs" / "phone.md").read_text("utf-8")
    (commands,) = re.findall(r"```sh\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "phone.py").symlink_to(SOURCE.parents[2] / "phone.py")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / trained_run.name).symlink_to(trained_run)
    identity = {
        f"GIT_{role}_{what}": "test@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    run = partial(subprocess.run, cwd=tmp_path, env=os.environ | identity, check=True)
    run(["git", "init", "-q", "--bare", "host.git"])
    run(["git", "clone", "-q", "host.git", "pages"])
    run(["bash", "-euc", commands])
    listed = run(["git", "-C", "host.git", "ls-tree", "--name-only", "HEAD"], stdout=subprocess.PIPE, text=True).stdout
    assert set(listed.split()) == {path.name for path in app.iterdir()}


def test_the_orientation_of_a_photo_matters_to_the_model(trained, photos):
    upright, turned = predict(trained, [photos / "photo.png", photos / "turned.jpg"])
    assert max(abs(dict(upright.classes).get(name, 0) - value) for name, value in turned.classes) > SCALED_TOLERANCE


@pytest.mark.parametrize(
    "event", ["new DragEvent('drop', {dataTransfer: data})", "new ClipboardEvent('paste', {clipboardData: data})"]
)
def test_a_photo_can_be_dropped_and_pasted(driver, site, trained, photos, event):
    visit(driver, site)
    driver.execute_script(
        "const bytes = Uint8Array.from(atob(arguments[0]), letter => letter.charCodeAt()); const data = new DataTransfer();"
        "data.items.add(new File([bytes], 'photo.png', {type: 'image/png'}));"
        f"document.dispatchEvent({event})",
        base64.b64encode((photos / "photo.png").read_bytes()).decode(),
    )
    assert_same(answer(driver), trained, photos / "photo.png")


def test_it_works_after_the_server_has_stopped(driver, app, trained, photos):
    with served(app) as site:
        visit(driver, site)
        assert site.requests.count(f"/{MODEL}") == site.requests.count("/ort.bin") == 1  # nothing large is loaded twice
    driver.get(f"{site.origin}/")
    wait_for(driver, "the app", READY)
    assert "Ready for use without a network" in driver.execute_script(f"return {TEXT}")
    choose(driver, photos / "turned.jpg")
    assert_same(answer(driver), trained, photos / "turned.jpg")


def test_a_refused_camera_leaves_the_photos(driver, site, trained, photos):
    visit(driver, site, camera="denied")
    assert "may not use the camera" in driver.execute_script("return note.textContent")
    assert driver.execute_script("return live.hidden")
    driver.execute_script("document.getElementById('phone-camera').click = () => window.asked = true; shutter.click()")
    assert driver.execute_script("return window.asked")  # the phone's own camera
    driver.find_element("id", "phone-camera").send_keys(str(photos / "photo.png"))
    assert_same(answer(driver), trained, photos / "photo.png")


@pytest.mark.parametrize("built", [True, False])
def test_a_broken_model_is_named(driver, app, tmp_path, built):
    folder, half = tmp_path / "app", tmp_path / "half.onnx"
    half.write_bytes((app / MODEL).read_bytes()[:100_000])
    if built:
        build_app(half, json.loads((app / "model.json").read_text("utf-8")), folder)
    else:  # cut off on its way to the server
        shutil.copytree(app, folder)
        shutil.copy(half, folder / MODEL)
    with served(folder) as site:
        visit(driver, site, ready=MESSAGE)
        assert driver.execute_script(f"return {MESSAGE}").startswith("The model cannot be loaded: ")
        assert driver.execute_script("return verdict.textContent") == "No model"


@pytest.mark.parametrize(
    ("name", "sentence"), [("text.jpg", "text.jpg is no picture"), ("photo.heic", "cannot read HEIC")]
)
def test_a_file_that_is_no_photo_is_named(driver, site, photos, name, sentence):
    visit(driver, site)
    choose(driver, photos / name)
    assert sentence in wait_for(driver, "a sentence", MESSAGE)
    choose(driver, photos / "photo.png")
    assert len(answer(driver)) == 5
    assert not driver.execute_script(f"return {MESSAGE}")


def test_a_full_storage_costs_only_the_storage(driver, site, photos):
    visit(driver, site)
    driver.execute_cdp_cmd("Storage.overrideQuotaForOrigin", {"origin": site.origin, "quotaSize": 1000})
    choose(driver, photos / "photo.png")
    assert len(answer(driver)) == 5
    assert "not kept among the last photos: the browser's storage is full" in wait_for(driver, "a sentence", MESSAGE)


def test_a_storage_without_room_for_the_app_costs_only_the_offline_use(driver, site, photos):
    driver.execute_cdp_cmd("Storage.overrideQuotaForOrigin", {"origin": site.origin, "quotaSize": 1000})
    visit(driver, site)
    assert "works only with a network" in driver.execute_script("return offline.textContent")
    choose(driver, photos / "photo.png")
    assert len(answer(driver)) == 5


def test_a_new_version_comes_by_a_click_or_at_the_next_start(driver, app, tmp_path):
    folder, about = tmp_path / "app", json.loads((app / "model.json").read_text("utf-8"))

    def publish(text: str) -> None:
        build_app(app / MODEL, about | {"about": text}, folder)

    shown = "about.textContent"
    publish("first")
    with served(folder) as site:
        visit(driver, site)
        assert driver.execute_script(f"return {shown}") == "first"
        publish("second")
        site.requests.clear()
        driver.execute_script("document.dispatchEvent(new Event('visibilitychange'))")  # as when a person comes back
        wait_for(driver, "the offer", "!update.hidden")
        assert f"/{MODEL}" not in site.requests  # it has not changed
        assert driver.execute_script("return loading.hidden && detail.textContent") == ""
        assert driver.execute_script(f"return {shown}") == "first"
        driver.find_element("id", "reload").click()
        wait_for(driver, "the second version", shown, lambda text: text == "second")
        publish("third")
        driver.execute_script("document.dispatchEvent(new Event('visibilitychange'))")
        wait_for(driver, "the offer", "!update.hidden")
        driver.get("about:blank")
        driver.get(site.origin)
        wait_for(driver, "the third version", shown, lambda text: text == "third")
    driver.get(site.origin)
    assert wait_for(driver, "the version that was kept", shown) == "third"


def test_the_last_twenty_photos_survive_a_killed_tab_and_can_be_deleted(driver, site, photos):
    visit(driver, site)
    add = "const {add} = await import('./history.js'); const photo = await (await fetch('icon-192.png')).blob();"
    answer_of = "{photo, time: i, answer: {sure: true, guesses: [{name: `car ${i}`, probability: 0.9}]}}"
    driver.execute_async_script(
        f"const done = arguments[0]; (async () => {{ {add} for (let i = 0; i < 22; i++) await add({answer_of}); done() }})()"
    )
    killed = driver.current_window_handle
    driver.switch_to.new_window("tab")
    other = driver.current_window_handle
    driver.switch_to.window(killed)
    with pytest.raises(WebDriverException, match="crash"):
        driver.get("chrome://crash")
    driver.switch_to.window(other)
    visit(driver, site)
    driver.find_element("id", "open-history").click()
    titles = "[...document.querySelectorAll('#history-list strong')].map(title => title.textContent)"
    assert wait_for(driver, "the photos", titles) == [f"car {number}" for number in range(21, 1, -1)]
    driver.find_element("css selector", "#history-list li:nth-child(2) [aria-label^=Delete]").click()
    wait_for(driver, "the others", titles, lambda found: len(found) == 19 and "car 20" not in found)
    driver.find_element("id", "clear-history").click()
    driver.switch_to.alert.accept()
    wait_for(driver, "an empty list", f"{titles}.length === 0")
    driver.find_element("id", "close-history").click()


SCREENS = {"small phone": (320, 568), "phone": (390, 844), "turned phone": (844, 390), "desktop": (1400, 900)}


def emulate(driver: Any, width: int, height: int, *, dark: bool) -> None:
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 1000}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [
        {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.fixture
def emulated(driver) -> Iterator[Any]:
    yield partial(emulate, driver)
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_axe_finds_nothing_serious_on_any_screen(driver, site, photos, emulated):
    install_runtime(SOURCE)
    axe = (SOURCE / "node_modules" / "axe-core" / "axe.min.js").read_text("utf-8")
    run = (
        "const done = arguments[0]; axe.run().then(({violations}) => "
        "done(violations.map(({id, impact, nodes}) => [id, impact, nodes[0].html])))"
    )
    visit(driver, site)
    driver.execute_script(axe)
    found, rules = [], "axe.getRules().length"
    assert driver.execute_script(f"return {rules}") > 50

    def check(state: str) -> None:
        for name, size in SCREENS.items():
            for dark in (False, True):
                emulated(*size, dark=dark)
                for violation in driver.execute_async_script(run):
                    found.append((state, name, dark, *violation))

    choose(driver, photos / "photo.png")
    answer(driver)
    driver.execute_script("result.classList.add('unsure')")
    check("an answer")
    choose(driver, photos / "text.jpg")
    wait_for(driver, "a sentence", MESSAGE)
    driver.execute_script("update.hidden = false")
    check("sentences")
    driver.find_element("id", "open-history").click()
    check("the last photos")
    assert not found


@pytest.mark.parametrize("size", SCREENS.values(), ids=SCREENS)
def test_nothing_is_cut_off_or_hidden(driver, site, photos, emulated, size):
    visit(driver, site)
    emulated(*size, dark=False)
    choose(driver, photos / "photo.png")
    answer(driver)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
    box = "{{const box = {}.getBoundingClientRect(); return [box.left, box.top, box.right, box.bottom]}}"
    view, photo, verdict = (driver.execute_script(box.format(name)) for name in ("view", "photo", "verdict"))
    assert photo == view and driver.execute_script("return getComputedStyle(photo).objectFit") == "contain"
    for name in ("choose", "shutter", "live", "verdict"):  # without scrolling
        left, top, right, bottom = driver.execute_script(box.format(f"document.getElementById('{name}')"))
        assert left >= 0 and top >= 0 and right <= size[0] and bottom <= size[1], name
    top_of_bar = driver.execute_script("return document.querySelector('nav').getBoundingClientRect().top")
    assert view[3] <= top_of_bar + 1 and verdict[3] <= top_of_bar + 1


def test_the_keyboard_reaches_everything(driver, site, photos):
    from selenium.webdriver import ActionChains, Keys

    visit(driver, site)
    wait_for(driver, "the camera", "video.videoWidth")
    reached = []
    for _ in range(4):
        ActionChains(driver).send_keys(Keys.TAB).perform()
        reached.append(driver.execute_script("return document.activeElement.id"))
        assert driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == ["open-history", "choose", "shutter", "live"]
    ActionChains(driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).send_keys(Keys.ENTER).perform()
    assert len(answer(driver)) == 5
    assert driver.execute_script("return answer.getAttribute('role')") == "status"  # a screen reader reads it out


def test_no_request_leaves_the_apps_own_server(photos, app, tmp_path):
    log = tmp_path / "net.json"
    camera = f"--use-file-for-fake-video-capture={photos / 'camera.mjpeg'}"
    elsewhere = "http://127.0.0.1:9/stolen"
    with browser(CAMERA, camera, f"--log-net-log={log}") as driver, served(app) as site:
        visit(driver, site)
        choose(driver, photos / "photo.png")
        answer(driver)
        driver.get(site.origin)  # now through the service worker
        wait_for(driver, "the app", READY)
        choose(driver, photos / "photo.png")
        answer(driver)
        attempt = "const [url, done] = arguments; fetch(url, {mode: 'no-cors'}).then(() => done('sent'), () => done('blocked'))"
        assert driver.execute_async_script(attempt, elsewhere) == "blocked"
        send = "const image = new Image(); image.onerror = () => done('blocked'); image.onload = () => done('sent');"
        assert (
            driver.execute_async_script(f"const [url, done] = arguments; {send} image.src = url", elsewhere)
            == "blocked"
        )
    requested = requests_in(log)
    own = {url for url, initiator in requested if initiator == site.origin}
    assert any(url.endswith(MODEL) for url in own)
    assert all(url.startswith(f"{site.origin}/") for url in own), own


def requests_in(log: Path) -> list[tuple[str, str]]:
    """Returns address and asking origin of every request of a whole browser, its workers included."""
    events = [event.get("params", {}) for event in json.loads(log.read_text("utf-8"))["events"]]
    return [(each["url"], each["initiator"]) for each in events if "url" in each and "initiator" in each]


def main(app: str, car: str, folder: str) -> None:
    """Takes pictures of an app on all screens, light and dark."""
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    frame = output / "camera.mjpeg"
    Image.open(car).convert("RGB").save(frame, "JPEG", quality=95)
    frame.write_bytes(frame.read_bytes() * 30)
    with served(Path(app)) as site, browser(CAMERA, f"--use-file-for-fake-video-capture={frame}") as driver:
        visit(driver, site)
        wait_for(driver, "the camera", "video.videoWidth")
        for state in ("start", "answer", "photos"):
            if state == "answer":
                driver.find_element("id", "shutter").click()
                answer(driver)
            if state == "photos":
                driver.find_element("id", "open-history").click()
            for name, size in SCREENS.items():
                for dark in (False, True):
                    emulate(driver, *size, dark=dark)
                    time.sleep(0.5)
                    driver.save_screenshot(str(output / f"{state} {name} {'dark' if dark else 'light'}.png"))


if __name__ == "__main__":
    main(*sys.argv[1:])
