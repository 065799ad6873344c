"""The server's settings: one frozen value, read once from the environment.

| name | default | meaning |
|---|---|---|
| `LABEL_STUDIO_URL` | `http://localhost:8080` | address of Label Studio (also `LABEL_STUDIO_HOST`) |
| `LABEL_STUDIO_API_KEY` | none | personal access token, or legacy token (also `LABEL_STUDIO_ACCESS_TOKEN`) |
| `CHECKPOINT` | `bundled` | file with the model's weights |
| `DEVICE` | `auto` | `auto` (CUDA if there is one), `cpu`, `cuda`, `cuda:1` |
| `DTYPE` | `float32` | `float32` or `bfloat16` |
| `RESOLUTION` | the checkpoint's | what the network sees: `448` or `448x672` (height x width) |
| `FEATURE_CACHE_BYTES` | `1GB` | features of images, on the device; `512MB`, `4GB`, or plain bytes |
| `MEMO_CACHE_BYTES` | `512MB` | masks of earlier clicks, in host memory |
| `IMAGE_MAX_BYTES` | `64MB` | largest file that is downloaded or decoded |
| `IMAGE_MAX_PIXELS` | `80000000` | largest image, width x height |
| `IMAGE_TIMEOUT` | `20` | seconds for fetching one image |
| `BASIC_AUTH_USER`, `BASIC_AUTH_PASS` | none | ask for these on every route but `/health` |
| `MODEL_DIR` | `data` | where fine-tuned models will be kept |
| `WORKERS` | `1` | processes; each has its own model and caches |
| `THREADS` | `32` | requests in progress per process |
| `HOST`, `PORT` | `0.0.0.0`, `9090` | address to listen on |
| `LOG_LEVEL` | `INFO` | `DEBUG`, `INFO`, `WARNING` or `ERROR` |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """See the table above. Secrets are left out of the representation."""

    label_studio_url: str = "http://localhost:8080"
    label_studio_api_key: str | None = field(default=None, repr=False)
    checkpoint: str = "bundled"
    device: str = "auto"
    dtype: str = "float32"
    resolution: tuple[int, int] | None = None
    feature_cache_bytes: int = 1 << 30
    memo_cache_bytes: int = 512 << 20
    image_max_bytes: int = 64 << 20
    image_max_pixels: int = 80_000_000
    image_timeout: float = 20.0
    basic_auth_user: str | None = None
    basic_auth_pass: str | None = field(default=None, repr=False)
    model_dir: Path = Path("data")
    workers: int = 1
    threads: int = 32
    host: str = "0.0.0.0"
    port: int = 9090
    log_level: str = "INFO"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Settings from variables; an empty variable counts as not set. Raises `ValueError` with one line."""
        read = _Reader({name: value.strip() for name, value in environment.items() if value.strip()})
        user, password = read.text("BASIC_AUTH_USER"), read.text("BASIC_AUTH_PASS")
        if (user is None) != (password is None):
            raise ValueError("set both BASIC_AUTH_USER and BASIC_AUTH_PASS, or neither")
        return cls(
            label_studio_url=read.url("LABEL_STUDIO_URL", "LABEL_STUDIO_HOST") or cls.label_studio_url,
            label_studio_api_key=read.text("LABEL_STUDIO_API_KEY") or read.text("LABEL_STUDIO_ACCESS_TOKEN"),
            checkpoint=read.text("CHECKPOINT") or cls.checkpoint,
            device=read.matching("DEVICE", r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:1") or cls.device,
            dtype=read.matching("DTYPE", "float32|bfloat16", "float32 or bfloat16") or cls.dtype,
            resolution=read.resolution("RESOLUTION"),
            feature_cache_bytes=read.size("FEATURE_CACHE_BYTES", cls.feature_cache_bytes),
            memo_cache_bytes=read.size("MEMO_CACHE_BYTES", cls.memo_cache_bytes),
            image_max_bytes=read.size("IMAGE_MAX_BYTES", cls.image_max_bytes),
            image_max_pixels=read.integer("IMAGE_MAX_PIXELS", cls.image_max_pixels, 1, 178_000_000),
            image_timeout=read.seconds("IMAGE_TIMEOUT", cls.image_timeout),
            basic_auth_user=user,
            basic_auth_pass=password,
            model_dir=Path(read.text("MODEL_DIR") or cls.model_dir),
            workers=read.integer("WORKERS", cls.workers, 1, 64),
            threads=read.integer("THREADS", cls.threads, 2, 1024),
            host=read.text("HOST") or cls.host,
            port=read.integer("PORT", cls.port, 0, 65535),
            log_level=read.matching("LOG_LEVEL", "DEBUG|INFO|WARNING|ERROR", "DEBUG, INFO, WARNING or ERROR")
            or cls.log_level,
        )


@dataclass(frozen=True)
class _Reader:
    """Reads single variables; every complaint names the variable, its value and what it may be."""

    values: Mapping[str, str]

    def text(self, name: str) -> str | None:
        return self.values.get(name)

    def matching(self, name: str, pattern: str, allowed: str) -> str | None:
        value = self.text(name)
        if value is not None and not re.fullmatch(pattern, value):
            raise ValueError(f"{name}={value} is not one of {allowed}")
        return value

    def integer(self, name: str, default: int, lowest: int, highest: int) -> int:
        value = self.text(name)
        if value is None:
            return default
        if not re.fullmatch(r"\d{1,18}", value) or not lowest <= int(value) <= highest:
            raise ValueError(f"{name}={value} is not a whole number from {lowest} to {highest}")
        return int(value)

    def seconds(self, name: str, default: float) -> float:
        value = self.text(name)
        if value is None:
            return default
        if not re.fullmatch(r"\d+(\.\d+)?", value) or float(value) <= 0:
            raise ValueError(f"{name}={value} is not a number of seconds such as 20")
        return float(value)

    def size(self, name: str, default: int) -> int:
        value = self.text(name)
        if value is None:
            return default
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", value.upper())
        if not match:
            raise ValueError(f"{name}={value} is not a size such as 512MB, 4GB or 1000000")
        return int(float(match[1]) * _UNITS[match[2]])

    def resolution(self, name: str) -> tuple[int, int] | None:
        value = self.text(name)
        if value is None:
            return None
        match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", value.lower())
        if not match or 0 in (sides := (int(match[1]), int(match[2] or match[1]))):
            raise ValueError(f"{name}={value} is not a resolution such as 448 or 448x672 (height x width)")
        return sides

    def url(self, *names: str) -> str | None:
        for name in names:
            value = self.text(name)
            if value is None:
                continue
            if urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname:
                raise ValueError(f"{name}={value} is not an address such as http://localhost:8080")
            return value.rstrip("/")
        return None
