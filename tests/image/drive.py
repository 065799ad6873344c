"""One round with a running backend: health, setup, a click on a photo, a training that nobody can learn from; prints
what was answered as JSON.

    python tests/image/drive.py http://127.0.0.1:9090

A program of its own, so that it can be started in the container's network, and of the standard library only.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import Any

PHOTO = Path(__file__).resolve().parents[1] / "e2e" / "photos" / "coffee.jpg"
WIDTH, HEIGHT = 600, 400
CLICKS = [(290, 110, True), (250, 240, True), (430, 250, False)]  # x, y, sign: the cup, the cup, the saucer

LABELING_CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image" smart="false"><Label value="Cup"/></BrushLabels>
  <KeyPointLabels name="click" toName="image" smart="true"><Label value="Cup"/></KeyPointLabels>
</View>
"""


def main() -> None:
    """Play the round against the address given."""
    url = sys.argv[1]
    answers = {
        "health": _await(f"{url}/health", patience=60),
        "ready": _await(f"{url}/ready", patience=300),
        "setup": _ask(
            f"{url}/setup", {"project": "1.1", "schema": LABELING_CONFIG, "hostname": "http://localhost:8080"}
        ),
        "predict": _ask(f"{url}/predict", click_body()),
        "webhook": _ask(f"{url}/webhook", {"action": "START_TRAINING", "project": {"id": 1}}),
        "training": _ended_training(f"{url}/training?project=1", patience=300),
    }
    print(json.dumps(answers))


def click_body() -> dict[str, Any]:
    """What Label Studio sends after the last of `CLICKS`; the photo travels in it, so no Label Studio is needed."""
    photo = f"data:image/jpeg;base64,{b64encode(PHOTO.read_bytes()).decode()}"
    return {
        "tasks": [
            {"id": 1, "project": 1, "data": {"image": photo}, "annotations": [], "predictions": [], "drafts": []}
        ],
        "project": "1.1",
        "label_config": LABELING_CONFIG,
        "params": {"login": None, "password": None, "context": {"result": [_keypoint(*click) for click in CLICKS]}},
    }


def _keypoint(x: int, y: int, positive: bool) -> dict[str, Any]:
    place = {"x": 100 * (x + 0.5) / WIDTH, "y": 100 * (y + 0.5) / HEIGHT, "width": 0.2}
    return {
        "id": f"click-{x}-{y}",
        "type": "keypointlabels",
        "from_name": "click",
        "to_name": "image",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "is_positive": positive,
        "value": place | {"labels": ["Cup"], "keypointlabels": ["Cup"]},
    }


def _await(url: str, patience: float) -> Any:
    """The answer once it is 200. Raises the last error when `patience` seconds have passed."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return _ask(url)
        except OSError:  # refused, or any status but 2xx
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _ended_training(url: str, patience: float) -> Any:
    """What is said of the newest training once it has ended, or of one that goes on after `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        job = _ask(url)["jobs"][0]
        if job["ended_at"] is not None or time.monotonic() > deadline:
            return job
        time.sleep(0.2)


def _ask(url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()
