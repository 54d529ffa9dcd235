#!/usr/bin/env bash
# `make lock`: renew the locked requirements, of Tropilla, of the clients that try it, of the fuzzer
# and of the audit.
#
# Every file holds exact versions and hashes for all platforms and for Python 3.11 to 3.14, and says
# nothing of where packages come from: that is pip's and npm's to know on each machine.
set -euo pipefail
cd "$(dirname "$0")/.."

UV=0.13.9
AGE="3 days" # what was published later waits: a bad release is mostly found out by then

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/uv"
"$work/uv/bin/python" -m pip --disable-pip-version-check install --quiet "uv==$UV"

lock() { # lock OUTPUT INPUT...
    echo "$1"
    "$work/uv/bin/uv" pip compile --quiet --no-config --universal --python-version 3.11 --upgrade \
        --generate-hashes --exclude-newer "$AGE" --only-binary :all: --no-annotate \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
        --output-file "$1" "${@:2}"
}

lock requirements/dev.txt pyproject.toml --all-extras --group dev
# The same versions, so that one .venv holds both.
lock requirements/serve.txt pyproject.toml --extra engine --group build \
    --constraint requirements/dev.txt
# What the image of deploy/Dockerfile holds, and what its wheel is built with.
lock requirements/image.txt pyproject.toml --extra otel --extra postgres \
    --constraint requirements/dev.txt
lock requirements/build.txt --group build --constraint requirements/dev.txt
locked=(requirements/{dev,serve,image,build}.txt)

for folder in tests/clients/{openai2,openai3,frameworks,llm,ollama,anthropic0,anthropic2} tests/fuzz tools/audit \
    tools/deploy bench/peers/{smg,litellm,flask}; do
    lock "$folder/requirements.txt" "$folder/requirements.in"
    locked+=("$folder/requirements.txt")
done

if command -v npm >/dev/null; then
    for folder in tests/clients/openai_node/v* tests/clients/{ai_sdk,ollama_node,anthropic_node} bench/peers/portkey; do # package.json says which version: edit it there
        echo "$folder/package-lock.json"
        npm install --prefix "$folder" --package-lock-only --ignore-scripts --silent \
            --omit-lockfile-registry-resolved
        # Where a package's author takes money is no place to fetch anything from.
        "$work/uv/bin/python" - "$folder/package-lock.json" <<'EOF'
import json
import sys
from pathlib import Path

file = Path(sys.argv[1])
told = json.loads(file.read_text(encoding="utf-8"))
for one in told["packages"].values():
    one.pop("funding", None)
file.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
EOF
        locked+=("$folder/package-lock.json")
    done
else
    echo "npm is not on this machine: the Node clients stay as they are." >&2
fi

if grep -n -e '://' -e "${HOME:-/root}" -e "$work" "${locked[@]}"; then
    echo "The lines above name an address or a folder of this machine: leave them out." >&2
    exit 1
fi
