# The miner, for GPUs by default: from the repository's root,
#   docker build --file deploy/docker/miner.Dockerfile --tag registry.example/coalface-miner:0.1.0 .
# --build-arg EXTRAS=cpu,cluster,archive builds the one for CPUs.
FROM python:3.11.13-slim-bookworm AS build
ARG EXTRAS=gpu,cluster,archive
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/coalface
# torch first, by itself: whatever other packages ask for, its build stays.
COPY constraints.txt ./
RUN /opt/coalface/bin/pip install --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY miner miner
COPY trainer trainer
COPY protos protos
RUN /opt/coalface/bin/pip install --constraint constraints.txt ".[${EXTRAS}]"

FROM python:3.11.13-slim-bookworm
COPY --from=build /opt/coalface /opt/coalface
COPY --chmod=0755 deploy/health.py /opt/coalface/bin/coalface-health
RUN groupadd --gid 10001 coalface \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin coalface \
    && install --directory --owner 10001 --group 10001 /var/lib/coalface /var/lib/coalface/state
# The root file system may be read-only: Ray's session and compiled loops lie under /tmp.
ENV PATH=/opt/coalface/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /tmp
EXPOSE 50051 9400
CMD ["coalface-miner", "--help"]
