# One image for every process: `easel serve` (the default), `easel worker`, `easel migrate`.
FROM python:3.11-slim-bookworm AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
RUN python -m venv /opt/easel

COPY requirements-production.lock ./
RUN /opt/easel/bin/python -m pip install --require-hashes --no-deps -r requirements-production.lock

# Only this stage has the build tool: hatchling and what it needs, as the development lock pins them.
COPY requirements.lock ./
RUN awk '/^[a-z]/ { keep = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/ } keep' requirements.lock \
      >requirements-build.lock \
    && python -m pip install --require-hashes --no-deps -r requirements-build.lock

COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY migrations migrations
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/easel/bin/python -m pip install --no-deps dist/*.whl \
    && /opt/easel/bin/python -m pip uninstall --yes setuptools pip


FROM python:3.11-slim-bookworm

RUN useradd --system --uid 10001 --home-dir /srv/easel --create-home easel \
    && install --directory --owner easel --group easel /var/lib/easel
COPY --from=build /opt/easel /opt/easel

ENV PATH=/opt/easel/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DATA_DIR=/var/lib/easel \
    METRICS_HOST=0.0.0.0
USER easel
WORKDIR /srv/easel
VOLUME /var/lib/easel
EXPOSE 8000

HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
CMD ["easel", "serve", "--host", "0.0.0.0", "--port", "8000"]
