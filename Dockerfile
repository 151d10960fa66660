# syntax=docker/dockerfile:1
# The Makefile's steps in an image: `docker build -t remuda .`, or with `--build-arg ACCELERATOR=gpu` for CUDA.
ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
ARG ACCELERATOR=cpu
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY engine engine
COPY kernels kernels
COPY server server
COPY clients clients
COPY demo demo
RUN python -m venv /opt/remuda \
    && /opt/remuda/bin/python -m pip install --no-cache-dir -c constraints.txt ".[${ACCELERATOR}]"

FROM python:${PYTHON_VERSION}-slim
# libgomp: numba's threads. gcc: Triton compiles its launchers with it at start.
ARG ACCELERATOR=cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && if [ "$ACCELERATOR" = gpu ]; then apt-get install --yes --no-install-recommends gcc libc6-dev; fi \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home remuda
COPY --from=build /opt/remuda /opt/remuda
USER 10001
WORKDIR /home/remuda
ENV PATH=/opt/remuda/bin:$PATH
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["remuda"]
CMD ["serve", "demo", "--host", "0.0.0.0"]
