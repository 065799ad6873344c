"""gunicorn's settings, from the same environment as the server's own (see backend/settings.py).

One process with many threads: the model and the caches exist once, and a thread that waits costs nothing.
"""

import os

from backend.settings import Settings

_settings = Settings.from_environment(os.environ)

bind = f"{_settings.host}:{_settings.port}"
workers = _settings.workers
worker_class = "gthread"
threads = _settings.threads
timeout = 120  # a worker that shows no sign of life is replaced; loading a big checkpoint counts as work
graceful_timeout = 30
keepalive = 30  # Label Studio keeps its connections open
control_socket_disable = True  # nobody controls this server but by signals
accesslog = None  # the app logs one line per request itself
loglevel = _settings.log_level.lower()
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None  # heartbeats must not wait for a disk
