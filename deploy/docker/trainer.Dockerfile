# The reference trainer: from the repository's root,
#   docker build --file deploy/docker/trainer.Dockerfile --tag registry.example/coalface-trainer:0.1.0 .
FROM python:3.11.13-slim-bookworm AS build
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
RUN /opt/coalface/bin/pip install --constraint constraints.txt ".[trainer]"

FROM python:3.11.13-slim-bookworm
COPY --from=build /opt/coalface /opt/coalface
COPY --chmod=0755 deploy/health.py /opt/coalface/bin/coalface-health
RUN groupadd --gid 10001 coalface \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin coalface \
    && install --directory --owner 10001 --group 10001 /var/lib/coalface /var/lib/coalface/training
ENV PATH=/opt/coalface/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /tmp
EXPOSE 9401
CMD ["coalface-trainer", "--help"]
