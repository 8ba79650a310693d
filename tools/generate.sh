#!/bin/sh
# Generates the Python code beside the .proto files: messages and their stubs for all, gRPC code for the services alone.
# usage: tools/generate.sh [OUT]   (default: proto)
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=${1:-proto}
bin=$(dirname "$python")
plugins="--plugin=protoc-gen-mypy=$bin/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$bin/protoc-gen-mypy_grpc"
# shellcheck disable=SC2086  # the plugins are several words
"$python" -m grpc_tools.protoc $plugins -Iproto --python_out="$out" --mypy_out=quiet:"$out" proto/convolver/v1/*.proto
# shellcheck disable=SC2086
"$python" -m grpc_tools.protoc $plugins -Iproto --grpc_python_out="$out" --mypy_grpc_out=quiet:"$out" proto/convolver/v1/*_service.proto
