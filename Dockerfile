# The backend as an image:
#   docker build -t skipclick-backend .
#   docker run -p 9090:9090 -v skipclick:/data -e LABEL_STUDIO_URL=... -e LABEL_STUDIO_API_KEY=... skipclick-backend
# The same image uses a GPU when it is started with `--gpus all`.
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE}

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=9090 \
    MODEL_DIR=/data

RUN useradd --create-home --uid 1000 skipclick \
    && install --directory --owner=skipclick --group=skipclick /data

WORKDIR /app
COPY requirements.txt .
RUN python -m pip install --no-cache-dir -r requirements.txt
COPY skipclick skipclick
COPY train train
COPY backend backend

USER skipclick
VOLUME /data
EXPOSE 9090
HEALTHCHECK --interval=15s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health', timeout=2)"]
CMD ["python", "-m", "backend"]
