# Targets: `reference` computes with NumPy alone, `torch` (the default) with PyTorch too. BuildKit builds only what its target needs.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS tools
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# Lists of requirements, so that the large layers below are built again when these change and not at every edit of pyproject.toml.
FROM tools AS requirements
COPY pyproject.toml tools/requirements.py ./
RUN python3 requirements.py bare pictures server >/reference.txt && python3 requirements.py torch >/torch.txt

FROM tools AS wheel
COPY LICENSE README.md pyproject.toml ./
COPY proto proto
COPY core core
COPY client client
COPY server server
RUN pip wheel --no-deps --wheel-dir /wheel .

# Each layer installs into the same virtual environment: dependencies, then torch, then Convolver itself, from rare to frequent change.
FROM tools AS dependencies
RUN python3 -m venv --without-pip /opt/convolver \
 && useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin convolver
RUN --mount=type=bind,from=requirements,source=/reference.txt,target=/tmp/reference.txt \
    --mount=type=bind,source=constraints.txt,target=/tmp/constraints.txt \
    pip --python /opt/convolver/bin/python install -c /tmp/constraints.txt -r /tmp/reference.txt
ENV PATH=/opt/convolver/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CONVOLVER_LISTEN=0.0.0.0:50051 \
    CONVOLVER_HTTP_LISTEN=0.0.0.0:8002
WORKDIR /
EXPOSE 50051 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["convolver", "health", "127.0.0.1:50051"]
ENTRYPOINT ["convolver-server"]
LABEL org.opencontainers.image.title="Convolver" \
      org.opencontainers.image.description="A convolution service over gRPC" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM dependencies AS torch-dependencies
# An index to look into besides the usual one: there a build of torch without CUDA spares machines without a GPU gigabytes.
ARG TORCH_INDEX_URL=
# The C++ headers and torch's own tests are a fifth of its size, and nothing at run time reads them.
RUN --mount=type=bind,from=requirements,source=/torch.txt,target=/tmp/torch.txt \
    --mount=type=bind,source=constraints.txt,target=/tmp/constraints.txt \
    pip --python /opt/convolver/bin/python install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
      -c /tmp/constraints.txt -r /tmp/torch.txt \
 && rm -r /opt/convolver/lib/python3*/site-packages/torch/include /opt/convolver/lib/python3*/site-packages/torch/test

FROM dependencies AS reference
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip --python /opt/convolver/bin/python install --no-deps --no-index /wheel/*.whl
USER 10001:10001

FROM torch-dependencies AS torch
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip --python /opt/convolver/bin/python install --no-deps --no-index /wheel/*.whl
USER 10001:10001
