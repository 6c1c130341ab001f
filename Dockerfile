# The example application with all that it can use: worker, beat and Flower are this one image with other commands.

FROM python:3.11.15-slim-bookworm AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/venv
# Exactly what the lock names, by hash, from wheels only. It changes seldom: this layer is kept.
COPY requirements/runtime.lock requirements/
RUN pip --python /opt/venv/bin/python install --no-deps --require-hashes --only-binary=:all: -r requirements/runtime.lock
COPY pyproject.toml README.md LICENSE ./
COPY aicache_tasks aicache_tasks
COPY workers workers
RUN pip --python /opt/venv/bin/python install --no-deps --no-build-isolation --no-index . \
 && pip --python /opt/venv/bin/python uninstall --yes setuptools \
 && /opt/venv/bin/python -m compileall -q /opt/venv

FROM python:3.11.15-slim-bookworm
LABEL org.opencontainers.image.title="aicache-tasks" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin aicache
COPY --from=build /opt/venv /opt/venv
COPY deploy/with-secrets deploy/health.py deploy/flowerconfig.py /app/deploy/
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["/app/deploy/with-secrets"]
CMD ["celery", "-A", "workers.app", "worker", "--loglevel=INFO"]
