#!/usr/bin/env bash
# Runs N processes of bert_jax.train on this machine as if each were a host of its own.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/local.sh N TRAIN-FLAGS...

Starts N processes of `python -m bert_jax.train TRAIN-FLAGS...` that train one model together: a
rehearsal, on the CPU of one machine, of a run on N hosts. Process 0 writes to this terminal, each
other one to a file. When one dies, it is named and the others are ended. SIGTERM and Ctrl-C are
passed on: the run saves and ends with code 75 or 130, and the same command goes on from there.

Settings, from the environment:
  DEVICES=D     virtual devices of each process (what XLA_FLAGS says, or 1)
  RESTARTS=K    after a death start all again, up to K times, from the last checkpoint (0)
  GRACE=S       seconds that the others have to end after one did, before they are killed (20)
  LOGS=DIR      process I > 0 writes to DIR/process_I.log (a new directory)
  PYTHON=FILE   the interpreter (python)
END
}

EXIT_USER_ERROR=2
EXIT_PREEMPTED=75   # stopped by SIGTERM, and saved
EXIT_INTERRUPTED=130
EXIT_TERMINATED=143 # stopped by SIGTERM before there was anything to save

fail() {
  echo "error: $*" >&2
  exit "$EXIT_USER_ERROR"
}

say() {
  echo "launch/local.sh: $*" >&2
}

whole_number() {
  [[ $2 =~ ^[0-9]{1,6}$ ]] || fail "$1 must be a whole number, not '$2'"
}

case ${1-} in
  -h | --help) usage && exit ;;
  "") fail "give the number of processes and train's flags; see launch/local.sh --help" ;;
esac
processes=$1
shift
whole_number "the number of processes" "$processes"
((processes > 0)) || fail "the number of processes must be at least 1"
whole_number RESTARTS "${RESTARTS:=0}"
whole_number GRACE "${GRACE:=20}"
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || fail "bash $BASH_VERSION is older than 5.1"
PYTHON=${PYTHON:-python}
type -P "$PYTHON" >/dev/null || fail "there is no program '$PYTHON'; set PYTHON to an interpreter"
if [[ -n ${DEVICES-} ]]; then
  whole_number DEVICES "$DEVICES"
  export XLA_FLAGS="${XLA_FLAGS-} --xla_force_host_platform_device_count=$DEVICES"
fi
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} # processes that share an accelerator would fight for it
LOGS=${LOGS:-$(mktemp -d "${TMPDIR:-/tmp}/bert_jax.XXXXXX")}
mkdir -p "$LOGS" || fail "LOGS=$LOGS cannot be made"

pids=()      # of process 0, 1, ...
running=()   # the same without those that have ended
forwarded="" # the last signal that was sent to this launcher and passed on

signal_running() {
  ((${#running[@]} == 0)) || kill -s "$1" "${running[@]}" 2>/dev/null || true
}

# shellcheck disable=SC2329  # the traps call it
forward() {
  forwarded=$1
  signal_running "$1"
}
trap 'forward INT' INT
trap 'forward TERM' TERM HUP

# Starts a command in a process group of its own, so that a terminal's Ctrl-C comes to it once, from
# `forward`: a second one would interrupt the run before it has saved.
start() {
  set -m
  "$@" </dev/null &
  set +m
}

# A port that nobody listens on, below those that systems take for outgoing connections.
free_port() {
  local port
  while port=$((16384 + RANDOM % 16384)); (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
    continue
  done
  echo "$port"
}

start_processes() {
  local port process flags
  port=$(free_port)
  pids=()
  for ((process = 0; process < processes; process++)); do
    flags=(--coordinator "127.0.0.1:$port" --processes "$processes" --process "$process")
    if ((process == 0)); then
      start "$PYTHON" -m bert_jax.train "$@" "${flags[@]}"
    else
      start "$PYTHON" -m bert_jax.train "$@" "${flags[@]}" >>"$LOGS/process_$process.log" 2>&1
    fi
    pids+=("$!")
    running=("${pids[@]}")
  done
  [[ -z $forwarded ]] || signal_running "$forwarded" # it came before all had started
}

# Waits until a process has ended; sets `process` to its number and `code` to its exit code. Returns
# 1 if a signal came instead, which has then been passed on.
wait_for_one() {
  local pid index
  code=0
  { wait -n -p pid "${running[@]}" || code=$?; } 2>/dev/null # without bash's own "Killed"
  if [[ -z ${pid-} ]]; then
    # Of processes that end at the same moment `wait -n` tells one and forgets the others.
    for index in "${running[@]}"; do
      kill -s 0 "$index" 2>/dev/null || pid=$index
    done
    [[ -n ${pid-} ]] || return 1
    code=0
    { wait "$pid" || code=$?; } 2>/dev/null
  fi
  for index in "${!pids[@]}"; do
    [[ ${pids[index]} != "$pid" ]] || process=$index
  done
  unset "running[process]"
}

# Sets `death` to a sentence, and shows the last words of the dead.
tell_death() {
  local process=$1 code=$2 log=$LOGS/process_$1.log how="with exit code $2"
  ((code <= 128)) || how="of SIG$(kill -l $((code - 128)))"
  death="process $process died first, $how"
  if ((process == 0)); then
    say "$death; its last lines are above; ending the others"
  else
    say "$death; ending the others; the last lines of $log:"
    tail -n 50 "$log" >&2
  fi
}

# Whether an exit code means that the run was told to stop.
is_stop() {
  (($1 == EXIT_PREEMPTED || $1 == EXIT_INTERRUPTED)) ||
    { (($1 == EXIT_TERMINATED)) && [[ -n $forwarded ]]; }
}

# Runs all processes to their end; sets `status` to 0 or to the code of the first that failed.
run_processes() {
  local code process killer="" death=""
  status=0
  start_processes "$@"
  while ((${#running[@]})); do
    wait_for_one || continue
    ((code != 0 && status == 0)) || continue
    status=$code
    # Those who were told to stop are all at the same step and about to end by themselves. Those who
    # lost another wait for it in a collective, and cannot save.
    if ! is_stop "$code"; then
      tell_death "$process" "$code"
      signal_running TERM
    fi
    # shellcheck disable=SC2016  # it is the inner bash that expands them
    start bash -c 'sleep "$1" && shift && kill -s KILL "$@"' - "$GRACE" "${running[@]}" 2>/dev/null
    killer=$!
  done
  [[ -z $killer ]] || kill -- "-$killer" 2>/dev/null || true
  [[ -z $death ]] || say "all have ended; $death" # below what the others had to say
}

((processes == 1)) || say "process 0 writes here, each other one I to $LOGS/process_I.log"
while true; do
  run_processes "$@"
  case $status in
    0 | "$EXIT_USER_ERROR" | "$EXIT_INTERRUPTED") break ;;
  esac
  if [[ -n $forwarded ]] || ((RESTARTS == 0)); then
    break
  fi
  say "starting again from the last checkpoint; restarts left after this: $((--RESTARTS))"
done
exit "$status"
