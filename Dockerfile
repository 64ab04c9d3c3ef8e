# One image for every process: `easel serve` (the default), `easel worker`, `easel migrate`. It holds Python, the
# libraries that it needs, and Easel: no shell, no package manager, nothing else to keep up to date.
FROM debian:bookworm-slim AS base

RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates media-types netbase python3 tzdata
# What of Debian runs Easel, with the database of dpkg, so that scanners see what is installed.
RUN mkdir /root-of-image && cd /root-of-image && mkdir -p tmp usr/bin usr/lib usr/lib64 usr/sbin var/lib/dpkg/info && chmod 1777 tmp \
    && packages="base-files ca-certificates libbz2-1.0 libc6 libcom-err2 libcrypt1 libexpat1 libffi8 libgcc-s1 \
        libgssapi-krb5-2 libk5crypto3 libkeyutils1 libkrb5-3 libkrb5support0 liblzma5 libncursesw6 libnsl2 \
        libpython3-stdlib libpython3.11-minimal libpython3.11-stdlib libreadline8 libsqlite3-0 libssl3 libstdc++6 \
        libtinfo6 libtirpc3 libuuid1 media-types netbase python3 python3-minimal python3.11 python3.11-minimal tzdata \
        zlib1g" \
    && dpkg-query --show --showformat '${Package}\n' $packages >/dev/null \
    && dpkg -L $packages | sort -u | grep -Ev '^/usr/share/(doc/.*/changelog|man|locale|lintian)|gconv' \
      | tar --create --no-recursion --ignore-failed-read --files-from - | tar --extract --directory /root-of-image \
    && dpkg-query --status $packages >/root-of-image/var/lib/dpkg/status \
    && tar --create /etc/ssl/certs /etc/passwd /etc/group /usr/lib/python3*/__pycache__ /usr/lib/python3*/*/__pycache__ \
      | tar --extract --directory /root-of-image \
    && useradd --root /root-of-image --uid 10001 --home-dir /srv/easel --no-create-home easel


FROM base AS build

# binutils strips the symbols of debuggers, a third of what the packages weigh.
RUN apt-get install --yes --no-install-recommends binutils python3-venv
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
RUN python3 -m venv --without-pip /opt/easel && python3 -m venv /opt/build

COPY requirements-production.lock ./
RUN /opt/build/bin/pip --python /opt/easel install --no-compile --require-hashes --no-deps -r requirements-production.lock

# Only this stage has the build tool: hatchling and what it needs, as the development lock pins them.
COPY requirements.lock ./
RUN awk '/^[a-z]/ { keep = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/ } keep' requirements.lock \
      >requirements-build.lock \
    && /opt/build/bin/pip install --require-hashes --no-deps -r requirements-build.lock

COPY .env.example LICENSE README.md pyproject.toml ./
COPY app app
COPY migrations migrations
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/build/bin/pip --python /opt/easel install --no-compile --no-deps dist/*.whl
# Not the libraries that a package brings along: they were patched after they were linked. Of the bytecode, that of what
# the processes load: they start in half the time with it, and all of it would weigh as much as the packages.
RUN find /opt/easel -name '*.so' -type f -not -path '*.libs/*' -exec strip --strip-unneeded {} + \
    && /opt/easel/bin/python -c 'import app.commands.migrate, app.commands.serve, app.storage.minio, app.worker.process' \
    && mkdir -p /root-of-image/opt /root-of-image/srv/easel /root-of-image/var/lib/easel \
    && chown 10001 /root-of-image/srv/easel /root-of-image/var/lib/easel \
    && mv /opt/easel /root-of-image/opt/easel


FROM scratch

COPY --from=build /root-of-image /
ENV PATH=/opt/easel/bin:/usr/bin \
    LANG=C.UTF-8 \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DATA_DIR=/var/lib/easel \
    METRICS_HOST=0.0.0.0
# By number: Kubernetes' runAsNonRoot cannot tell who a name is.
USER 10001
WORKDIR /srv/easel
VOLUME /var/lib/easel
EXPOSE 8000

HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os; from urllib.request import urlopen; urlopen(f\"http://127.0.0.1:{os.environ.get('PORT') or 8000}/livez\", timeout=2)"]
CMD ["easel", "serve", "--host", "0.0.0.0"]
