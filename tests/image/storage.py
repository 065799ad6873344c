"""Building the image with buildah: no container engine, only Debian's packages buildah and debootstrap, and root."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Base:
    """An image of Debian's packages in the place of a base image that the Dockerfile names."""

    name: str
    argument: str  # of the Dockerfile, in whose place it comes
    suite: str
    packages: str  # beyond what each Debian has


@dataclass(frozen=True, slots=True)
class Image:
    """An image that the Dockerfile makes."""

    name: str
    target: str
    base: Base


_PYTHON_311 = Base("localhost/debian-12", "BASE_IMAGE", "bookworm", "python3,python3-venv,python3-pip,ca-certificates")
_DEBIAN_13 = Base("localhost/debian-13", "CPU_BASE_IMAGE", "trixie", "ca-certificates")
FULL = Image("localhost/skipclick", "full", _PYTHON_311)
CPU = Image("localhost/skipclick-cpu", "cpu", _DEBIAN_13)


@dataclass(frozen=True, slots=True)
class Storage:
    """A folder with images and containers that nothing else on this machine knows of."""

    folder: Path
    driver: str

    def buildah(self, *arguments: str | Path, **options: Any) -> str:
        """What a buildah command printed, without the last line end. Raises `CalledProcessError`."""
        done = subprocess.run(self.command(*arguments), stdout=subprocess.PIPE, text=True, check=True, **options)
        return done.stdout.strip()

    def command(self, *arguments: str | Path) -> list[str]:
        """A buildah command line that works on this storage."""
        place = ["--root", self.folder / "root", "--runroot", self.folder / "run", "--storage-driver", self.driver]
        return ["env", f"TMPDIR={self.folder}", "buildah", *map(str, (*place, *arguments))]

    def has_image(self, name: str) -> bool:
        """Whether an image of this name is stored."""
        return name in self.buildah("images", "--format", "{{.Name}}").splitlines()

    def image_config(self, name: str) -> dict[str, Any]:
        """The image's own settings: Env, User, Entrypoint, Healthcheck, Volumes, ..."""
        config: dict[str, Any] = json.loads(self.buildah("inspect", "--type", "image", name))["Docker"]["config"]
        return config

    def layer_bytes(self, name: str) -> list[int]:
        """Bytes of the files in each layer, from the base upwards."""
        layers = json.loads((self.folder / "root" / f"{self.driver}-layers" / "layers.json").read_text())
        sizes = {layer["diff-digest"]: layer["diff-size"] for layer in layers if "diff-digest" in layer}
        inspected = json.loads(self.buildah("inspect", "--type", "image", name))
        return [sizes[digest] for digest in inspected["Docker"]["rootfs"]["diff_ids"]]

    @contextmanager
    def container(self, image: str) -> Iterator[str]:
        """A container made from an image, not started; gone at the end."""
        container = self.buildah("from", "--pull-never", image)
        try:
            yield container
        finally:
            self.buildah("rm", container)


@contextmanager
def storage() -> Iterator[Storage]:
    """An empty storage that is removed at the end, or the one in the folder IMAGE_STORAGE, which is kept.

    Layers are overlays where the kernel allows it here, else whole copies (vfs); STORAGE_DRIVER chooses.
    """
    kept = os.environ.get("IMAGE_STORAGE")
    folder = Path(kept or tempfile.mkdtemp(prefix="skipclick-image-")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    made = Storage(folder, os.environ.get("STORAGE_DRIVER") or ("overlay" if _overlay_works(folder) else "vfs"))
    try:
        yield made
    finally:
        made.buildah("rm", "--all")
        made.buildah("umount", "--all")
        subprocess.run(["umount", folder / "root" / made.driver], stderr=subprocess.DEVNULL, check=False)
        if not kept:
            shutil.rmtree(folder)


def _overlay_works(folder: Path) -> bool:
    places = [Path(tempfile.mkdtemp(dir=folder, prefix="probe-")) for _ in range(4)]
    lower, upper, work, merged = places
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    done = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, merged], capture_output=True, check=False
    )
    if done.returncode == 0:
        subprocess.run(["umount", merged], check=True)
    for place in places:
        shutil.rmtree(place)
    return done.returncode == 0


def build_base(store: Storage, base: Base) -> None:
    """An image like the Dockerfile's base, from Debian's packages, as slim as that."""
    container = store.buildah("from", "scratch")
    top = Path(store.buildah("mount", container))
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={base.packages}", base.suite, top], check=True)
    for leftover in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
        shutil.rmtree(top / leftover)
    store.buildah("umount", container)
    store.buildah("commit", "--quiet", container, base.name)
    store.buildah("rm", container)


def build_image(store: Storage, image: Image) -> None:
    """A target of the Dockerfile on its base, with this machine's way to the package index lent to the build only.

    Its layers are kept apart only where they are overlays.
    """
    with tempfile.TemporaryDirectory(dir=store.folder) as folder:
        secrets = [f"--secret=id={name},src={path}" for name, path in _pip_secrets(Path(folder)).items()]
        options = ["--isolation", "chroot", "--format", "docker", "--target", image.target]
        options += ["--build-arg", f"{image.base.argument}={image.base.name}"]
        options += ["--layers"] if store.driver == "overlay" else []  # else each layer would copy all below it
        subprocess.run(store.command("bud", *options, *secrets, "--tag", image.name, ROOT), check=True)


def _pip_secrets(folder: Path) -> dict[str, Path]:
    """Files to lend by name: pip's index and certificates as they are set on this machine, if they are."""
    settings = _pip_settings()
    config, secrets = configparser.ConfigParser(), {}
    config["global"] = {}
    if index := settings.get("index-url"):
        config["global"]["index-url"] = index
    if certificates := settings.get("cert"):
        config["global"]["cert"] = "/run/secrets/ca"
        secrets["ca"] = Path(certificates)
    if not config["global"]:
        return {}
    secrets["pip"] = folder / "pip.conf"
    with secrets["pip"].open("w") as file:
        config.write(file)
    return secrets


def _pip_settings() -> Mapping[str, str]:
    """pip's settings on this machine by short name; those of the environment win, as they do in pip."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, text=True, check=True
    )
    pairs = [line.partition("=") for line in listed.stdout.splitlines()]
    ordered = sorted(pairs, key=lambda pair: pair[0].startswith(":env:"))
    return {name.rpartition(".")[2]: value.strip("'") for name, _, value in ordered}


def descendants(process_id: int) -> Sequence[int]:
    """The process's children, theirs, and so on, nearest first."""
    found, position = [process_id], 0
    while position < len(found):
        for children in Path(f"/proc/{found[position]}/task").glob("*/children"):  # each thread has its own
            with suppress(OSError):  # it has just ended
                found += map(int, children.read_text().split())
        position += 1
    return found[1:]
