#!/usr/bin/env bash
# Builds the container's two targets and tries them: tools/image.sh build|test|engine
#
# test:   the server becomes healthy, a second container filters a picture through it, SIGTERM ends it with exit code 0
# engine: exit code 0 if this machine can build images
# CONTAINERS may name a script that builds images and runs compose files where no container engine is running:
#   $CONTAINERS build FOLDER TAG [build arguments]      $CONTAINERS up FOLDER COMPOSE_FILE SERVICE
set -euo pipefail
cd "$(dirname "$0")/.."
CONTAINERS=${CONTAINERS-$(ls ../shared/tools/containers.sh 2>/dev/null || true)}
docker=${DOCKER:-docker}
image=${IMAGE:-convolver}
compose_file=deploy/docker-compose.test.yml

build() { # $1: the target
  if [ -n "$CONTAINERS" ]; then bash "$CONTAINERS" build . "$image:$1" --target "$1"
  else DOCKER_BUILDKIT=1 "$docker" build --target "$1" --tag "$image:$1" .; fi
}

compose() { # the plugin, or the program of its own that came before it
  if "$docker" compose version >/dev/null 2>&1; then "$docker" compose -f "$compose_file" "$@"
  else docker-compose -f "$compose_file" "$@"; fi
}

run_services() { # step by step, since releases of compose differ in what --abort-on-container-exit does with a chain of services
  trap 'compose down --volumes --timeout 5 >/dev/null 2>&1' EXIT
  compose up -d --no-build server
  compose run --rm client
  server=$(compose ps -q server)
  compose run --rm --no-deps stop
  local code; code=$("$docker" wait "$server")
  "$docker" logs "$server"
  return "$code"
}

try() { # $1: the target
  export SERVER_IMAGE="$image:$1" SERVER_BACKEND="$1" SERVER_PORT=0 SERVER_HTTP_PORT=0 # any free ports: nobody calls from outside
  if [ -n "$CONTAINERS" ]; then bash "$CONTAINERS" up . "$compose_file" server
  else (run_services); fi
  echo "$image:$1 became healthy, filtered a picture for another container and ended with 0 at SIGTERM"
}

case ${1:-} in
build) build torch; build reference ;;
test) for target in reference torch; do build "$target"; try "$target"; done ;;
engine) [ -n "$CONTAINERS" ] || "$docker" info >/dev/null 2>&1 ;;
*) sed -n '2,7s/^# //p' "$0" >&2; exit 2 ;;
esac
