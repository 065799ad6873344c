"""gunicorn's settings, from the same environment as the server's own (see backend/settings.py).

One process with many threads: the model and the caches exist once, and a thread that waits costs nothing.
"""

import os
import signal
from typing import Any

from backend.settings import Settings, host_and_port

_settings = Settings.from_environment(os.environ)

bind = host_and_port(_settings.host, _settings.port)
workers = _settings.workers
worker_class = "backend.worker.Worker"
threads = _settings.threads
timeout = 120  # seconds; an unresponsive worker is replaced
graceful_timeout = _settings.shutdown_timeout
keepalive = 30  # Label Studio keeps its connections open
sendfile = False  # answers leave in one piece (backend.worker.BufferedSocket)
control_socket_disable = True  # this server is controlled by signals only
accesslog = None  # the app logs one line per request itself
loglevel = _settings.log_level.lower()
logconfig_dict: dict[str, Any] = {  # gunicorn's own lines go to the same stream in the same format
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"ours": {"()": f"backend.logs.{_settings.log_format.title()}Formatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "ours"}},
    "root": {"level": _settings.log_level, "handlers": ["stderr"]},
    "loggers": {"gunicorn.error": {"level": _settings.log_level, "handlers": ["stderr"], "propagate": False}},
}
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None  # heartbeats must not wait for a disk


def when_ready(server: Any) -> None:
    """Ignore SIGHUP. gunicorn would reload the model and answer 503 meanwhile, and settings are read only at start-up:
    to change one, restart."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
