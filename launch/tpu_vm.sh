#!/usr/bin/env bash
# Trains on a Cloud TPU slice: creates it, installs this checkout, starts the run on every worker,
# follows it, and goes on after preemptions.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/tpu_vm.sh COMMAND [ARGUMENTS...]

  create [CREATE-FLAGS...]  make the slice, unless it is there, and wait until it is ready; flags such
                            as --spot and --network=NAME are handed to gcloud
  install                   put this checkout's last commit and its packages on every worker
  start TRAIN-FLAGS...      start bert_jax.train on every worker; it outlives the connection
  follow                    show worker 0's log until the run ends; end with the run's code
  run [CREATE-FLAGS...] -- TRAIN-FLAGS...
                            all of these, and again from the last checkpoint when the slice was
                            preempted or the run died
  stop                      have the run save and end with code 75
  delete                    delete the slice; what is in --workdir stays

Settings, from the environment:
  NAME      the slice's name
  ZONE      such as us-west4-a
  TYPE      such as v5litepod-16, for create and run
  RUNTIME   the TPU software version (the one for TYPE)
  PROJECT   the Google Cloud project (gcloud's own)
  QUEUED=1  create the slice as a queued resource: wait in line where there is no capacity
  RESTARTS  how often `run` starts again after a death (10); preemptions are not counted
  POLL      seconds between two looks at what is not ready (30)

TRAIN-FLAGS need --workdir gs://BUCKET/DIR, for a slice loses its disks. Ctrl-C ends `follow` and
`run`, but not the training: the same command takes it up again.
END
}

EXIT_USER_ERROR=2
EXIT_PREEMPTED=75
EXIT_INTERRUPTED=130

fail() {
  echo "error: $*" >&2
  exit "$EXIT_USER_ERROR"
}

say() {
  echo "launch/tpu_vm.sh: $*" >&2
}

# --- The slice. ---

tpus() {
  gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"} --quiet
}

# Prints the state of a `tpu-vm` or of a `queued-resources` request, such as READY, or ABSENT. What
# else goes wrong, such as a missing permission, must not pass for an absent slice; once there was
# one, it passes for a fault of the network.
state() {
  local format="value(state)" output
  [[ $1 == tpu-vm ]] || format="value(state.state)"
  until output=$(tpus "$1" describe "$NAME" --format="$format" 2>&1); do
    if [[ $output == *NOT_FOUND* ]]; then
      echo ABSENT
      return
    fi
    echo "$output" >&2
    [[ -n ${was_ready-} ]] || return 1
    sleep "$POLL"
  done
  echo "${output##*$'\n'}" # warnings stand above it
}

software() {
  if [[ -n ${RUNTIME-} ]]; then
    echo "$RUNTIME"
    return
  fi
  case $TYPE in
    v[234]-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "set RUNTIME to the TPU software version for TYPE=$TYPE" ;;
  esac
}

create() {
  [[ -n ${TYPE-} ]] || fail "set TYPE to the kind of slice, such as TYPE=v5litepod-16"
  local slice request=none version creation
  version=$(software)
  creation=(tpu-vm create "$NAME" --version="$version")
  if [[ -n ${QUEUED-} ]]; then
    creation=(queued-resources create "$NAME" --node-id="$NAME" --runtime-version="$version")
  fi
  while true; do
    slice=$(state tpu-vm)
    [[ -z ${QUEUED-} ]] || request=$(state queued-resources)
    case $slice/$request in
      READY/*) break ;;
      PREEMPTED/* | TERMINATED/* | */SUSPENDED | */FAILED | ABSENT/ACTIVE)
        say "$NAME is $slice, its request $request; deleting what is left"
        delete
        ;;
      STOPPED/*) fail "$NAME was stopped; start it, or delete it with launch/tpu_vm.sh delete" ;;
      ABSENT/none | ABSENT/ABSENT)
        say "creating $NAME, a $TYPE in $ZONE"
        if ! tpus "${creation[@]}" --accelerator-type="$TYPE" "$@"; then
          # What was to be had before may be had again: only the first refusal is final.
          [[ -n ${was_ready-} ]] || return 1
          sleep "$POLL"
        fi
        ;;
      *)
        say "waiting for $NAME: it is $slice, its request $request"
        sleep "$POLL"
        ;;
    esac
  done
  was_ready=1
}

delete() {
  local slice request
  slice=$(state tpu-vm)
  request=$(state queued-resources)
  if [[ $request != ABSENT ]]; then
    tpus queued-resources delete "$NAME" --force # its slice too
  elif [[ $slice != ABSENT ]]; then
    tpus tpu-vm delete "$NAME"
  else
    say "there is no $NAME in $ZONE"
  fi
}

# --- What the workers do, in ~/bert_jax. ---

# Calls one of the functions below on a worker, or on all: on WORKER FUNCTION [ARGUMENTS...].
on() {
  local worker=$1 script
  script="set -euo pipefail; mkdir -p bert_jax; cd bert_jax; $(declare -f "$2"); $2 \"\$@\""
  shift 2
  tpus tpu-vm ssh "$NAME" --worker="$worker" --command="$(printf '%q ' bash -c "$script" bash "$@")"
}

worker_install() {
  if [[ -e pid ]] && kill -s 0 "$(<pid)" 2>/dev/null; then
    echo "$HOSTNAME: a run is going on; stop it before you install" >&2
    return 1
  fi
  rm -rf source
  git clone --quiet ../bert_jax.bundle source
  # uv brings a Python of its own; the TPU software's is too old.
  [[ -x ~/.local/bin/uv ]] || python3 -m pip install --quiet --user uv
  [[ -x env/bin/python ]] || ~/.local/bin/uv venv --quiet --python 3.12 env
  ~/.local/bin/uv pip install --quiet --python env/bin/python --editable 'source[tpu]'
}

worker_start() {
  if [[ -e pid ]] && kill -s 0 "$(<pid)" 2>/dev/null; then
    return # it is running
  fi
  rm -f exit_code stopped
  cd source
  # A session of its own, with nothing open of the connection, outlives it.
  setsid bash -c 'trap : TERM; "$@"; echo "$?" >../exit_code' bash \
    ../env/bin/python -m bert_jax.train "$@" </dev/null >../log 2>&1 &
  echo "$!" >../pid
}

worker_follow() {
  [[ ! -e pid ]] || tail --lines=1000 --follow=name --pid="$(<pid)" log
}

# Prints the run's exit code, or else running, stopped, died (with the machine) or absent.
worker_result() {
  if [[ ! -e pid ]]; then
    echo absent
  elif kill -s 0 "$(<pid)" 2>/dev/null; then
    echo running
  elif [[ -e stopped ]]; then
    echo stopped
  elif [[ -e exit_code ]]; then
    cat exit_code
  else
    echo died
  fi
}

worker_end() {
  if [[ -e exit_code ]]; then
    echo "$(stat --format=%y exit_code) $HOSTNAME: exit code $(<exit_code); $(tail --lines=1 log)"
  fi
}

worker_stop() {
  touch stopped
  [[ -e pid ]] || return 0
  kill -s TERM -- "-$(<pid)" 2>/dev/null || return 0
  timeout 600 tail --follow --pid="$(<pid)" /dev/null || kill -s KILL -- "-$(<pid)"
}

# --- The run. ---

# Whether train's flags keep everything on gs://.
require_bucket() {
  local previous="" flag
  for flag in "$@"; do
    [[ $flag != --workdir=gs://* && $previous$flag != --workdirgs://* ]] || return 0
    previous=$flag
  done
  fail "train needs --workdir gs://BUCKET/DIR, which every worker can write and no preemption takes"
}

install() {
  local root bundle code=0
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  git -C "$root" diff --quiet HEAD || say "what is not committed is not installed"
  bundle=$(mktemp)
  git -C "$root" bundle create --quiet "$bundle" HEAD &&
    tpus tpu-vm scp "$bundle" "$NAME:bert_jax.bundle" --worker=all &&
    on all worker_install || code=$?
  rm "$bundle"
  return "$code"
}

# Shows worker 0's log to the end of the run; sets `outcome` to its exit code, to what else
# worker_result prints, or to the state of a slice that is no more.
follow() {
  local slice
  while true; do
    on 0 worker_follow || true
    outcome=$(on 0 worker_result) || outcome=unreachable
    outcome=${outcome##*$'\n'}
    [[ $outcome == running || $outcome == unreachable ]] || return 0
    slice=$(state tpu-vm)
    if [[ $slice != READY ]]; then
      outcome=$slice
      return 0
    fi
    say "the connection broke off; following again in $POLL seconds"
    sleep "$POLL"
  done
}

# Ends this program as the run ended, if it ended for good.
exit_if_final() {
  case $outcome in
    0 | "$EXIT_USER_ERROR" | "$EXIT_INTERRUPTED") exit "$outcome" ;;
    stopped) exit "$EXIT_PREEMPTED" ;;
  esac
}

exit_as_failed() {
  say "the run ended: $outcome"
  [[ ! $outcome =~ ^[0-9]+$ ]] || exit "$outcome"
  exit 1
}

run() {
  local create_flags=() slice
  while (($#)) && [[ $1 != -- ]]; do
    create_flags+=("$1")
    shift
  done
  (($#)) || fail "run needs -- before train's flags; see launch/tpu_vm.sh --help"
  shift
  require_bucket "$@"
  create "${create_flags[@]}"
  outcome=$(on 0 worker_result) || outcome=unknown
  while true; do
    if [[ ${outcome##*$'\n'} == running ]]; then
      follow # an earlier command started it
    elif on all worker_stop && install && on all worker_start "$@"; then
      follow
    else
      outcome="not started"
    fi
    exit_if_final
    slice=$(state tpu-vm)
    if [[ $slice == READY ]]; then
      say "the run ended ($outcome); the ends of its processes, first things first:"
      on all worker_end | sort >&2 || true
      ((RESTARTS-- > 0)) || exit_as_failed
      say "starting again from the last checkpoint; restarts left after this: $RESTARTS"
      sleep "$POLL"
    else
      say "the slice is $slice; making it again, to go on from the last checkpoint"
    fi
    create "${create_flags[@]}"
    outcome=""
  done
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || fail "bash $BASH_VERSION is older than 4.4"
trap 'exit "$EXIT_INTERRUPTED"' INT
command=${1---help}
(($# == 0)) || shift
case $command in
  create | install | start | follow | run | stop | delete) ;;
  -h | --help) usage && exit ;;
  *) fail "there is no command '$command'; see launch/tpu_vm.sh --help" ;;
esac
[[ -n ${NAME-} ]] || fail "set NAME to the name of the slice"
[[ -n ${ZONE-} ]] || fail "set ZONE to the slice's zone, such as ZONE=us-west4-a"
for setting in "RESTARTS=${RESTARTS:=10}" "POLL=${POLL:=30}"; do
  [[ ${setting#*=} =~ ^[0-9]{1,6}$ ]] || fail "$setting must be a whole number"
done
type -P gcloud >/dev/null || fail "there is no program gcloud; install the Google Cloud CLI"
case $command in
  start)
    require_bucket "$@"
    on all worker_start "$@"
    ;;
  follow)
    follow
    [[ $outcome != absent ]] || fail "nothing was started on $NAME"
    exit_if_final
    exit_as_failed
    ;;
  stop) on all worker_stop ;;
  *) "$command" "$@" ;;
esac
