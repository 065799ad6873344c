# The backend as an image, in two sizes; docs/docker.md says what each can do and how to build behind a proxy.
#   docker build -t skipclick .                     the full one: for a CPU or, with `docker run --gpus all`, a GPU
#   docker build -t skipclick:cpu --target cpu .    the small one, without CUDA
#   docker run -p 9090:9090 -v skipclick:/data skipclick
ARG BASE_IMAGE=python:3.11-slim
ARG CPU_BASE_IMAGE=debian:trixie-slim

# --- for the small image: Debian's torch, which is built without CUDA
FROM ${CPU_BASE_IMAGE} AS debian-torch
# Not kept: tests; packages that torch imports for other work than this, and AMD's libraries for GPUs, which only a plug-in
# of MPI loads; compiled Python, but for what is imported here (in a container nobody can write it).
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libopenblas0-pthread python3-torch \
    && dpkg --purge --force-depends libtorch-test python3-expecttest python3-fsspec python3-hypothesis \
        python3-networkx libamd-comgr2 libamdhip64-5 libhsa-runtime64-1 libllvm17t64 \
    && find /usr/lib/python3/dist-packages/torch/bin -type f ! -name torch_shm_manager -delete \
    && rm -rf /usr/lib/python3/dist-packages/numpy/*/tests /usr/share/doc /usr/share/locale /usr/share/man \
        /var/cache/* /var/lib/apt/lists/* /var/log/* \
    && find / -xdev -name __pycache__ -prune -exec rm -rf {} + \
    && python3 -c "import torch"

FROM ${CPU_BASE_IMAGE} AS cpu-packages
ENV PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_NO_DEPS=1 PIP_ONLY_BINARY=:all: PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN apt-get update && apt-get install --yes --no-install-recommends python3-pip
COPY requirements/server.txt .
# Not kept: OpenVINO's other devices and formats, and OpenCV's models and its own OpenBLAS in the place of Debian's.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m pip install --target /packages --require-hashes -r server.txt \
    && cd /packages/openvino/libs \
    && rm -r cache.json libopenvino_intel_gpu_plugin.so libopenvino_intel_npu_plugin.so ../include ../../cv2/data \
        libopenvino_gguf_* libopenvino_jax_* libopenvino_onnx_* libopenvino_paddle_* libopenvino_tensorflow_* \
    && cd /packages/opencv_python_headless.libs \
    && ln -sf "/usr/lib/$(uname -m)-linux-gnu/libopenblas.so.0" libopenblas-*.so

FROM debian-torch AS cpu-app
COPY --from=cpu-packages /packages /packages
COPY skipclick /app/skipclick
COPY train /app/train
COPY backend /app/backend
RUN cd /app && PYTHONPATH=/packages python3 -m skipclick compile bundled \
    && PYTHONPATH=/packages python3 -c "import backend.factory, backend.finetune.run_job, backend.web.app, backend.worker" \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /app

# --- the small image; what follows the packages is the same as in the full one
FROM debian-torch AS cpu
RUN useradd --uid 1000 --home-dir /data --no-create-home --shell /usr/sbin/nologin skipclick \
    && install --directory --owner=skipclick --group=skipclick /data
COPY --from=cpu-app /packages /packages
COPY --from=cpu-app /app /app

ENV PYTHONPATH=/packages \
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
ENTRYPOINT ["python3", "-m", "backend"]

# --- for the full image: everything that installing needs stays in this stage
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

COPY requirements/timm.txt requirements/server.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m pip install --target /packages/other --require-hashes -r timm.txt -r server.txt \
    && PYTHONPATH=/packages/torch:/packages/other python3 -m pip check

COPY skipclick /app/skipclick
# fine-tuning learns with train
COPY train /app/train
COPY backend /app/backend
# OpenVINO's graphs of the bundled model, which a first start would have to make
RUN cd /app && PYTHONPATH=/packages/torch:/packages/other python3 -m skipclick compile bundled
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /app

# --- the full image
FROM ${BASE_IMAGE} AS full
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
