# The backend as an image; docs/docker.md says how to run it, make it smaller and build it behind a proxy.
#   docker build -t skipclick .
#   docker run -p 9090:9090 -v skipclick:/data skipclick
# The same image uses a GPU when it is started with `--gpus all`.
ARG BASE_IMAGE=python:3.11-slim

# --- everything that installing needs stays in this stage
FROM ${BASE_IMAGE} AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_NO_DEPS=1 PIP_ONLY_BINARY=:all: PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

# torch with NVIDIA's libraries: most of the image, and seldom new, so a layer of its own
ARG TORCH_INDEX=
COPY requirements/torch.txt .
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    if [ -z "$TORCH_INDEX" ]; then \
        python3 -m pip install --target /packages/torch --require-hashes -r torch.txt; \
    else \
        python3 -m pip install --target /packages/torch --index-url "$TORCH_INDEX" \
            $(grep -oE '^torch(vision)?==[^ ]+' torch.txt); \
    fi

COPY requirements/server.txt .
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m pip install --target /packages/other --require-hashes -r server.txt \
    && PYTHONPATH=/packages/torch:/packages/other python3 -m pip check

COPY skipclick /app/skipclick
# fine-tuning learns with train
COPY train /app/train
COPY backend /app/backend
# OpenVINO's graphs of the bundled model, which a first start would have to make
RUN cd /app && PYTHONPATH=/packages/torch:/packages/other python3 -m skipclick compile bundled
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /app

# --- the image
FROM ${BASE_IMAGE}
RUN useradd --uid 1000 --home-dir /data --no-create-home --shell /usr/sbin/nologin skipclick \
    && install --directory --owner=skipclick --group=skipclick /data
COPY --from=packages /packages/torch /packages/torch
COPY --from=packages /packages/other /packages/other
COPY --from=packages /app /app

ENV PYTHONPATH=/packages/torch:/packages/other \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=9090 \
    MODEL_DIR=/data
WORKDIR /app
USER 1000:1000
VOLUME /data
EXPOSE 9090
HEALTHCHECK --interval=15s --timeout=3s --start-period=60s \
    CMD ["python3", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health', timeout=2)"]
# `docker run skipclick` serves; further words are commands of `python -m backend`, such as `doctor`.
ENTRYPOINT ["python3", "-m", "backend"]
