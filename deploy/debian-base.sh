#!/bin/sh
# debian-base.sh NAME: a base image out of Debian's packages, for buildah where no image registry can be reached.
#   sudo deploy/debian-base.sh topk-base && sudo make image BASE_IMAGE=localhost/topk-base MODEL=efficientnet_lite0
# Debian's release is one whose Python is that of constraints.txt. SUITE may be given, and MIRROR in place of debootstrap's own.
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
