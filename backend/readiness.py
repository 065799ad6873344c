"""The server's state: loading, ready, in trouble, or stopping."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from threading import Thread

from backend.factory import Service

_MIN_FREE = 100 << 20
"""Free bytes that a folder's disk must have: for a checkpoint and whatever else is written there."""


class NotReadyError(Exception):
    """The server cannot answer this now; the message says why and what to do."""


class Readiness:
    """Loads the service in the background and knows whether it can be used. Thread-safe."""

    def __init__(self, loading: Future[Service], folders: Iterable[Path] = ()) -> None:
        self._loading = loading
        self._folders = tuple(folders)
        self._stopping = False

    @classmethod
    def of(cls, service: Service) -> Readiness:
        """Of a service that is already loaded."""
        done: Future[Service] = Future()
        done.set_result(service)
        return cls(done)

    @classmethod
    def load(
        cls, build: Callable[[], Service], failed: Callable[[BaseException], None], folders: Iterable[Path]
    ) -> Readiness:
        """Start to build the service in a separate thread; if that raises, `failed` is called there with the error."""
        loading: Future[Service] = Future()

        def run() -> None:
            try:
                loading.set_result(build())
            except BaseException as error:
                loading.set_exception(error)
                failed(error)

        Thread(target=run, name="load", daemon=True).start()
        return cls(loading, folders)

    def service(self, patience: float = 0) -> Service:
        """The service, after waiting up to `patience` seconds for it. Raises `NotReadyError`."""
        try:
            return self._loading.result(patience)
        except NotYet:
            raise NotReadyError("the model is still being loaded; try again in a few seconds") from None
        except Exception as error:
            raise NotReadyError(f"the model could not be loaded: {error}") from None

    def loaded(self) -> Service | None:
        """The service if it is loaded."""
        return self._loading.result() if self._loading.done() and not self._loading.exception() else None

    def trouble(self) -> str | None:
        """Why no new requests should be sent here; None if they may be."""
        if self._stopping:
            return "the server is stopping"
        try:
            self.service().check_device()
        except NotReadyError as error:
            return str(error)
        except Exception as error:  # whatever a driver raises: the device cannot be used
            return f"the device does not answer: {type(error).__name__}: {error}"[:500]
        return None

    def folder_troubles(self) -> list[str]:
        """The folders that cannot be written to, and why. Clicks are answered anyway, but nothing is learnt or
        cached."""
        return [trouble for folder in self._folders if (trouble := folder_trouble(folder))]

    def stop(self) -> None:
        """Refuse new requests from now on. Called from a signal handler, so it takes no lock."""
        self._stopping = True

    def close(self) -> None:
        """Stop the background work."""
        self.stop()
        service = self.loaded()
        if service is not None:
            service.annotator.close()


def folder_trouble(folder: Path) -> str | None:
    """Why a folder cannot be written to, or None; it must be possible to create one that does not exist yet."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return f"the folder {folder} cannot be written to; mount a volume there or choose another"
    free = shutil.disk_usage(existing).free
    if free < _MIN_FREE:
        return f"the disk of the folder {folder} has only {free >> 20} MB left"
    return None
