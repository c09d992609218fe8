# docker build --build-arg MODEL=efficientnet_lite0 -t topk .    (or: make image MODEL=efficientnet_lite0)
#
# VARIANT  cpu   torch and OpenVINO: serves any model
#          slim  OpenVINO only: serves exported models, the one in the image or a mounted folder
#          cuda  torch with CUDA, and torchcodec for JPEG, for NVIDIA's container runtime, which provides the driver
# MODEL    the model to serve. The build exports it, so that a start needs neither network access nor a conversion
#
# The build context `given` may contain a weights file, named by WEIGHTS, or be a model folder, named by MODEL.
# The secrets `pip` (a pip.conf) and `ca` (certificates) are for builds behind a proxy. The image does not contain them.
ARG BASE_IMAGE=python:3.11.14-slim-bookworm

FROM scratch AS given

FROM ${BASE_IMAGE} AS packages
ARG VARIANT=cpu
# auto: PyTorch's index for CPUs, or with VARIANT=cuda pip's own; empty: pip's own
ARG TORCH_INDEX=auto
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY deploy/constraints.txt deploy/serving.txt deploy/cuda.txt deploy/image/install deploy/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    case "$VARIANT" in \
      slim) deploy/install deploy/serving.txt ;; \
      cpu) deploy/install deploy/constraints.txt ;; \
      cuda) deploy/install deploy/constraints.txt deploy/cuda.txt ;; \
      *) echo "VARIANT is cpu, slim or cuda, not $VARIANT" >&2; exit 1 ;; \
    esac
COPY pyproject.toml README.md LICENSE ./
COPY app app
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    /opt/pip/bin/pip --python /opt/topk/bin/python install --no-deps .

FROM packages AS model
ARG VARIANT=cpu
ARG TORCH_INDEX=auto
ARG MODEL=resnet50:IMAGENET1K_V2
ARG WEIGHTS=
COPY deploy/image/model deploy/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=bind,from=given,target=/given \
    deploy/model "$MODEL" "$WEIGHTS"

FROM ${BASE_IMAGE}
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="topk" \
      org.opencontainers.image.description="POST an image, get the top-k ImageNet classes." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# torch needs a name for the user.
RUN echo "topk:x:10001:10001::/tmp:/sbin/nologin" >> /etc/passwd && echo "topk:x:10001:" >> /etc/group
COPY --from=packages /opt/topk /opt/topk
COPY --from=model /models /models
# NVIDIA's runtime mounts the libraries of the GPU's JPEG decoder only with the capability video.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
# The caches are written only for a model other than the image's. With a read-only root, mount a tmpfs at /tmp.
# SageMaker mounts a model folder at /opt/ml/model. Elsewhere that does not exist, and the image's model is served.
ENV PATH=/opt/topk/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp TOPK_CACHE_DIR=/tmp/topk TORCH_HOME=/tmp/torch \
    TOPK_MODEL_FOLDERS=/opt/ml/model,/models/default PORT=8080
USER 10001:10001
WORKDIR /models
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python3", "-c", "from os import environ as e; from urllib.request import urlopen; urlopen('http://127.0.0.1:' + (e.get('TOPK_PORT') or e.get('AIP_HTTP_PORT') or e['PORT']) + '/readyz', timeout=4)"]
ENTRYPOINT ["topk"]
CMD ["serve"]
