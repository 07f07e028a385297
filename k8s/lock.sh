#!/usr/bin/env bash
# Writes requirements-gpu.lock and requirements-cpu.lock: every package of the image with its version and the digest of
# the one wheel that pip takes on Linux x86-64 with Python 3.11, so run it there. It needs jq, and installs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
# Only what stands here may decide on versions. Not --isolated: the pip that builds the project would not heed it.
unset "${!PIP_@}"
export PIP_CONFIG_FILE=/dev/null

# lock FILE OPTION...: the wheels that `pip install OPTION... .` would install, without the project itself.
lock() {
    local file=$1
    shift
    python3.11 -m pip install --dry-run --ignore-installed --only-binary :all: --quiet --report - -c constraints.txt "$@" . |
        jq -r '.install[] | select(.metadata.name != "parrot-dist") |
            "\(.metadata.name)==\(.metadata.version) --hash=sha256:\(.download_info.archive_info.hashes.sha256)"' |
        sort -f >"$file"
}

torch_cpu=(--extra-index-url https://download.pytorch.org/whl/cpu)
lock k8s/requirements-gpu.lock
lock k8s/requirements-cpu.lock "${torch_cpu[@]}" torch==2.13.0+cpu
sed -i "1i ${torch_cpu[*]}" k8s/requirements-cpu.lock
