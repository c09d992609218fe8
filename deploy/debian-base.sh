#!/bin/sh
# debian-base.sh NAME: builds a base image from Debian's packages, for buildah without access to an image registry.
#   sudo deploy/debian-base.sh topk-base && sudo make image BASE_IMAGE=localhost/topk-base MODEL=efficientnet_lite0
# SUITE is a Debian release whose Python matches constraints.txt, by default bookworm. MIRROR replaces debootstrap's default.
set -eu
name=${1:?usage: debian-base.sh NAME}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
  "${SUITE:-bookworm}" "$root" ${MIRROR:+"$MIRROR"} >&2
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/doc/* "$root"/usr/share/man/* \
  "$root"/usr/share/locale/* "$root"/var/log/*.log
container=$(buildah from scratch)
buildah add --quiet "$container" "$root" / >/dev/null
buildah commit --quiet --rm "$container" "$name"
