#!/usr/bin/env bash
# Build the images for real.      tests/jobs/build_image.sh [cpu] [gpu]
#   cpu    all of docker/Dockerfile.cpu, and run its main job on two workers, as its user and on a read-only root
#   gpu    docker/Dockerfile.gpu, as far as that needs no base with CUDA: its packages
# No Docker engine is needed: buildah builds in a chroot, on a Debian base that debootstrap makes. It takes root, about
# ten minutes for cpu, most of them Horovod's, and 30 GB of disk for gpu. WORK=folder keeps what was built.
set -euo pipefail
cd "$(dirname "$0")/../.."
for program in buildah debootstrap; do
    command -v $program >/dev/null || { echo "tests/jobs/build_image.sh: on Debian: apt-get install $program" >&2; exit 69; }
done
if [ "$(id -u)" != 0 ]; then echo "tests/jobs/build_image.sh: it takes root" >&2; exit 77; fi

work=${WORK:-$(mktemp -d)}
mkdir -p "$work"
if [ -z "${WORK:-}" ]; then trap 'rm -rf "$work"' EXIT; fi
buildah() { command buildah --root "$work/store" --runroot "$work/run" --storage-driver vfs "$@"; }

echo "== the base: Debian 12, by debootstrap"
if [ ! -d "$work/base" ]; then
    debootstrap --variant=minbase bookworm "$work/base" "${MIRROR:-http://deb.debian.org/debian}" >"$work/debootstrap.log"
fi
# Whom this machine trusts the build must trust, too.
install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$work/base/etc/ssl/host.crt"
printf '[global]\ncert = /etc/ssl/host.crt\n' >"$work/base/etc/pip.conf"
container=$(buildah from scratch)
cp -a "$work/base/." "$(buildah mount "$container")"
buildah commit --quiet --rm "$container" localhost/bookworm:base

build() { # the image of a kind, with the base in place of this build argument
    local kind=$1 base=$2
    shift 2
    buildah bud --isolation chroot --network host --format docker --build-arg "$base=localhost/bookworm:base" "$@" \
        --file "docker/Dockerfile.$kind" --tag "distgrad-$kind" . 2>&1 | tee "$work/build.log" |
        grep -E '^(STEP|==|Horovod|COMMIT)'
}

run() { # with the image's user and environment, on a read-only root: "" runs the image's command
    python3 - "$work/image.json" "$root" "$@" <<'END'
import json, os, sys
image, root, *command = sys.argv[1:]
config = json.load(open(image))["Docker"]["config"]
mounts = " && ".join([
    f"mount --bind {root} {root}", f"mount -t tmpfs tmpfs {root}/tmp", f"mount -t proc proc {root}/proc",
    f"mount -t tmpfs tmpfs {root}/dev", f"mkdir -p {root}/dev/shm", f"mount -t tmpfs -o size=1g tmpfs {root}/dev/shm",
    *(f"touch {root}/dev/{name} && mount --bind /dev/{name} {root}/dev/{name}" for name in ("null", "zero", "urandom")),
    f"touch {root}/etc/hosts && mount --bind /etc/hosts {root}/etc/hosts",  # as Docker does
    f"mount -o remount,bind,ro {root}",
])
inside = ["env", "-i", "-C", config["WorkingDir"], *config["Env"], *(command or config["Cmd"])]
chroot = ["chroot", f"--userspec={config['User']}", root, *inside]
os.execvp("unshare", ["unshare", "--mount", "--pid", "--fork", "sh", "-c", mounts + ' && exec "$@"', "sh", *chroot])
END
}

cpu() {
    echo "== the image"
    build cpu BASE

    echo "== its main job"
    container=$(buildah from distgrad-cpu)
    root=$(buildah mount "$container")
    buildah inspect --type image distgrad-cpu >"$work/image.json"
    run >"$work/job.log" 2>"$work/job.err" || { tail -n 30 "$work/job.err" >&2; exit 1; }
    tail -n 2 "$work/job.log"
    grep -q '| workers 2 |' "$work/job.log"

    echo "== its user, its root, Horovod, sshd, its health"
    [ "$(run id -u)" = 10001 ]
    if run touch /opt/distgrad/launch/x /home/distgrad/x 2>/dev/null; then echo "the root can be written to" >&2; exit 1; fi
    run distgrad run --oversubscribe -np 2 --backend horovod --controller gloo launch/train_digits.py --epochs 1 2>/dev/null | tail -n 1
    run sh -c 'cd /home/distgrad && ssh-keygen -q -t rsa -N "" -f /tmp/key &&
        sed s,/home/distgrad/.ssh/id_rsa,/tmp/key, sshd_config >/tmp/sshd_config && /usr/sbin/sshd -t -f /tmp/sshd_config'
    run distgrad doctor --quick -np 1
    echo "built and run"
}

gpu() {
    echo "== the packages of the image for GPUs"
    build gpu BUILDER --layers=false --target packages
    container=$(buildah from distgrad-gpu)
    buildah run --isolation chroot "$container" -- .venv/bin/python -c \
        'import tensorflow as tf; print("TensorFlow for CUDA", tf.sysconfig.get_build_info()["cuda_version"])'
    echo "built as far as it needs no CUDA"
}

if [ $# = 0 ]; then set -- cpu gpu; fi
for kind in "$@"; do "$kind"; done
