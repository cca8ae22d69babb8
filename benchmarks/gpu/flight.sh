#!/usr/bin/env bash
# `make gpu` on a lent machine: a GPU, CUDA's compiler, a python3 with torch, triton and pytest, and no network.
#
#   bash benchmarks/gpu/flight.sh --pack            here, before: the peers into .whl/, real rows into runs/ (git ignores both)
#   bash benchmarks/gpu/flight.sh first [options]   there: the first call, 330 s at the most; see plans.py
#   bash benchmarks/gpu/flight.sh second [options]  there: the second, after changes, 480 s at the most
#   bash benchmarks/gpu/flight.sh [options]         there: everything, as long as it takes
#
# Options are those of `python -m benchmarks.gpu`. Results are written into $OUT from the start, into runs/gpu where that is
# not set, so a call that is cut off leaves what it has measured. What is in runs/gpu already is not done again: bring $OUT
# back into it before a call on a fresh machine, and put the results into benchmarks/results/ in the end.
set -uo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}

if [ "${1:-}" = --pack ]; then
  set -e
  mkdir -p .whl
  pins=$(sed -n '/^peers = \[/,/^\]/p' pyproject.toml)
  wanted=$(grep -oE '"(sae-lens|eai-sparsify|dictionary-learning|transformer-lens)[=<][^"]*"' <<< "$pins" | tr -d '"')
  # shellcheck disable=SC2086
  "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -d .whl \
    $wanted natsort schedulefree simple-parsing docstring-parser datasets dill multiprocess \
    beartype better-abc fancy-einsum typeguard
  if [ -d data/acts-corpus ] && [ ! -d runs/acts-corpus ]; then "$PYTHON" -m benchmarks.gpu.flight_rows data/acts-corpus runs/acts-corpus; fi
  # not on PyPI; copies that `fetch` has made
  if [ -d ../.mirror/openai+sparse_autoencoder ]; then
    git --git-dir=../.mirror/openai+sparse_autoencoder/repo archive HEAD sparse_autoencoder | tar x -C .whl
  fi
  if [ -d ../.mirror/NVIDIA+bionemo-framework ]; then
    git --git-dir=../.mirror/NVIDIA+bionemo-framework/repo archive \
      HEAD:bionemo-recipes/interpretability/sparse_autoencoders/sae/src sae/architectures | tar x -C .whl
  fi
  du -sh .whl runs/acts-corpus
  exit
fi

plan=()
case "${1:-}" in first | second) plan=(--plan "$1"); shift ;; esac
earlier=${EARLIER:-runs/gpu}
results=${OUT:-$earlier}
cache=${TRITON_CACHE_DIR:-$HOME/.triton/cache}
mkdir -p "$earlier" "$results" "$cache"
if [ "$results" != "$earlier" ]; then cp -r "$earlier/." "$results/"; fi
if [ -f "$results/triton-cache.tgz" ]; then tar xzf "$results/triton-cache.tgz" -C "$cache"; fi

export PYTHONUNBUFFERED=1 PYTHONPATH=/tmp/site:$PWD/.whl:${PYTHONPATH:-}  # .whl may hold packages as folders
wheels=
if compgen -G ".whl/*.whl" > /dev/null && [ ! -d /tmp/site ]; then  # the peers, which come last in a plan
  nice "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target /tmp/site .whl/*.whl &
  wheels=$!
fi
"$PYTHON" -m benchmarks.gpu --out "$results" --elapsed "$SECONDS" "${plan[@]}" "$@" 2> "$results/stderr.log"
status=$?
tail -c 1000 "$results/stderr.log"
if [ -n "$wheels" ]; then wait "$wheels"; fi
# What launches need of the compiled kernels, for the next call. It fits if Python, Triton and this path are the same there.
if command -v nvidia-smi > /dev/null; then
  tar czf "$results/triton-cache.new" -C "$cache" --exclude='*.ttir' --exclude='*.ttgir' --exclude='*.llir' \
    --exclude='*.ptx' --exclude='*.source' . && mv "$results/triton-cache.new" "$results/triton-cache.tgz"
fi
exit $status
