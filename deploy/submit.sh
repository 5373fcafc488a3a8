#!/usr/bin/env bash
# Submits the miner to a running Ray cluster as a job, and returns. Needs `ray` with the extra `default`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<'TEXT'
usage: submit.sh --address URL --config PATH [--id ID] [--working-dir DIR] [-- OPTION...]

  --address URL      Ray's dashboard, such as http://127.0.0.1:8265
  --config PATH      the miner's YAML file, as the cluster's head sees it; relative to DIR if that is given
  --id ID            submission id, used once per cluster; default: coalface-<time>
  --working-dir DIR  uploaded with the job: your encoder's module, the configuration (512 MiB at most)
  OPTION...          further options of `coalface-miner serve`, such as --set workers.num_embed_workers=4

Stop the job with `ray job stop --address URL ID`.
TEXT
}

fail() {
  echo "submit.sh: $1" >&2
  usage >&2
  exit 2
}

address='' config='' id="coalface-$(date -u +%Y%m%dT%H%M%SZ)" more=()
while (($#)); do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    --address | --config | --id | --working-dir) (($# > 1)) || fail "$1 needs a value" ;;&
    --address) address=$2 ;;
    --config) config=$2 ;;
    --id) id=$2 ;;
    --working-dir) more=(--working-dir "$2") ;;
    *) fail "unknown option $1" ;;
  esac
  shift 2
done
[[ -n $address ]] || fail 'where is the cluster? give --address'
[[ -n $config ]] || fail 'what is to be served? give --config'

# No --entrypoint-num-cpus or the like: without one the entrypoint, and with it the gRPC port, is on the head.
exec ray job submit --address "$address" --submission-id "$id" \
  --runtime-env "$here/runtime_env.yaml" "${more[@]}" --no-wait \
  -- python -m miner serve --config "$config" "$@"
