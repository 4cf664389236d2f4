#!/usr/bin/env bash
# An environment with this package and all peers of run.py: benchmarks/setup_peers.sh FOLDER. llama.cpp is compiled
# (cmake and a C++ compiler, five minutes); what cannot be installed is left out, and run.py names it as missing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python3 -m venv "$1"
"$1/bin/pip" install --quiet "torch==2.13.0" # before the others: this version is a CPU build here
"$1/bin/pip" install --quiet "$here/.." matplotlib
while read -r package; do
    [[ -z $package || $package == \#* ]] || "$1/bin/pip" install --quiet "$package" || echo "left out: $package"
done < "$here/requirements.txt"
echo "$1/bin/python $here/run.py"
