#!/usr/bin/env bash
# `make gpu` on a lent machine: a GPU, CUDA's compiler, a python3 with torch, triton and pytest, and no network.
#
#   bash benchmarks/gpu/flight.sh --pack      here, before: the peers as wheels and what else travels, into .whl/ (git ignores it)
#   bash benchmarks/gpu/flight.sh [options]   there, as often as needed, 10 minutes at most each; options are those of `python -m benchmarks.gpu`
#
# Each call goes on where the last one stopped. Results are kept in runs/gpu, and copied to $OUT where that is set: bring
# them back and put them into runs/gpu before a call on a fresh machine, and into benchmarks/results/ in the end.
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
  if [ -d data/acts-corpus ] && [ ! -d .whl/acts-corpus ]; then "$PYTHON" -m benchmarks.gpu.flight_rows data/acts-corpus .whl/acts-corpus; fi
  if [ -d ../.mirror/openai+sparse_autoencoder ]; then  # not on PyPI; a copy that `fetch` has made
    git --git-dir=../.mirror/openai+sparse_autoencoder/repo archive HEAD sparse_autoencoder | tar x -C .whl
  fi
  du -sh .whl
  exit
fi

export PYTHONUNBUFFERED=1 PYTHONPATH=${PYTHONPATH:-}
mkdir -p runs/gpu
if compgen -G ".whl/*.whl" > /dev/null && [ ! -d /tmp/site ]; then
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target /tmp/site .whl/*.whl
fi
PYTHONPATH=/tmp/site:$PWD/.whl:$PYTHONPATH  # .whl may hold openai's sparse_autoencoder as a folder
"$PYTHON" -c "import saefast._cuda" 2> /dev/null ||
  "$PYTHON" -m pip install --quiet --no-index --no-build-isolation --no-deps -e . 2> runs/gpu/build.log ||
  tail -5 runs/gpu/build.log
echo "ready after $SECONDS s"
"$PYTHON" -m benchmarks.gpu --out runs/gpu --seconds $((570 - SECONDS)) "$@" 2> runs/gpu/stderr.log
status=$?
tail -c 1000 runs/gpu/stderr.log
if [ -n "${OUT:-}" ]; then cp -r runs/gpu/. "$OUT/"; fi
exit $status
