#!/usr/bin/env bash
# All evidence that needs a GPU, in order: `make bench-gpu`, about half an hour on one H200. Results go to benchmarks/results/.
# TEXT=FILE trains `original` on that file instead of downloading TinyStories; ARGS=--rehearse runs every part, tiny, on a CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
say() { printf '\n== %s\n' "$*"; }

say "the tests of training on this device"
"$python" -m pytest -q tests/test_train.py tests/test_transformer.py tests/test_device_steps.py
say "bundles"
"$python" -m benchmarks.bundle ${ARGS:-}
say "bundles, shared GPUs, one after another"
if [ "${ARGS:-}" = --rehearse ]; then "$python" -m benchmarks.pack --rehearse; else "$python" -m benchmarks.pack --shapes 2x256h8 6x256h8 6x384h8 --sizes 2 4 8; fi
say "the published study"
"$python" -m benchmarks.original ${ARGS:-} ${TEXT:+--set --data.path "$TEXT"}
