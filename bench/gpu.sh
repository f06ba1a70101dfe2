#!/usr/bin/env bash
# Run bench.gpu, or a stage of the miniature's training, on a machine with a GPU and without a network:
#
#     bash bench/gpu.sh MINUTES OUT [--parts NAMES] [--tiny]
#     bash bench/gpu.sh MINUTES OUT --train vae|base|adapters [--from FOLDER]
#
# What its Python lacks comes from build/gpu-wheels (`make gpu-wheels`). It ends within MINUTES, whatever happens.
set -euo pipefail

refuse() {
    echo "usage: bash bench/gpu.sh MINUTES OUT [--parts NAMES] [--tiny] | MINUTES OUT --train STAGE [--from FOLDER]" >&2
    exit 2
}
[[ $# -ge 2 && $1 =~ ^[1-9][0-9]{0,2}$ ]] || refuse
minutes=$1 out=$2
shift 2

command=(python3 -m bench.gpu)
if [[ ${1:-} == --train ]]; then
    [[ $# -ge 2 ]] || refuse
    command=(python3 -m bench.gpu.training "$2")
    shift 2
fi

mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.."
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if ! python3 -c 'import blake3, importlib_metadata, isal, msgspec, rapidfuzz
from importlib.util import find_spec
assert find_spec("compel") and find_spec("diffusers")' 2>/dev/null; then
    [[ -d build/gpu-wheels ]] || { echo "build/gpu-wheels is missing: run make gpu-wheels on a machine with a network" >&2; exit 1; }
    python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
        --target "$site" build/gpu-wheels/*.whl
fi
export PYTHONPATH="$site:$PWD" HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error PYTHONUNBUFFERED=1

left=$((minutes * 60 - SECONDS))
# It ends by itself; what happens after that is for a machine that hangs.
spare=$(awk "BEGIN { print ($left - 15) / 60 }")
status=0
timeout --kill-after=5 "$((left - 6))" "${command[@]}" --minutes "$spare" --out "$out" "$@" || status=$?
exit "$status"
