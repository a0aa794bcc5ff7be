# Sourced by the launchers: a request to end lets the ranks save first.
# mpirun answers SIGINT and SIGTERM by killing the ranks a second later, too soon for a checkpoint; SIGUSR1 and
# SIGUSR2 it passes on. So mpirun runs in a process group of its own, where Ctrl-C does not reach it, and
# this shell turns what it gets into those.

# follow_mpirun COMMAND [ARG ...]: runs it and exits with its code. SIGINT and SIGTERM: SIGUSR2 to the ranks
# (a training saves after its step and ends, other commands end); a second one, a second or more later, ends
# all at once. SIGHUP: SIGUSR2. SIGUSR1, SIGUSR2: passed on.
follow_mpirun() {
  local code new tied=() out=1 err=2 relays=()
  # Killed with this shell, should that be killed. util-linux; without it mpirun would live on.
  if setpriv --pdeathsig TERM true 2> /dev/null; then tied=(setpriv --pdeathsig TERM); fi
  mpirun_asked=
  trap '' PIPE
  if [ -p /dev/fd/1 ]; then start_relay out 1; fi
  if [ -p /dev/fd/2 ] && [ /dev/fd/1 -ef /dev/fd/2 ]; then err=$out
  elif [ -p /dev/fd/2 ]; then start_relay err 2; fi
  set -m
  ${tied[@]+"${tied[@]}"} "$@" <&0 >&"$out" 2>&"$err" &
  mpirun_pid=$!
  set +m
  if [ "$out" != 1 ]; then exec {out}>&-; fi
  if [ "$err" != 2 ] && [ "$err" != "$out" ]; then exec {err}>&-; fi
  trap 'ask_to_end SIGINT' INT
  trap 'ask_to_end SIGTERM' TERM
  trap 'kill -USR2 "$mpirun_pid" 2> /dev/null || true' HUP USR2
  trap 'kill -USR1 "$mpirun_pid" 2> /dev/null || true' USR1
  code=0
  # A trapped signal ends `wait` before mpirun has ended, and may end the next one too: two within a moment.
  while :; do
    new=0
    wait "$mpirun_pid" || new=$?
    if [ "$new" != 127 ]; then code=$new; fi
    kill -0 "$mpirun_pid" 2> /dev/null || break
  done
  for _ in 1 2; do  # where it ended during a trap, its code is still to be fetched
    new=0
    wait "$mpirun_pid" 2> /dev/null || new=$?
    if [ "$new" != 127 ]; then code=$new; fi
  done
  wait ${relays[@]+"${relays[@]}"} || true  # all that was said is out
  exit "$code"
}

# start_relay NAME FD: NAME becomes a descriptor whose text goes to the pipe FD. Open MPI's mpirun dies when the
# reader of its output does, as `| tee log` may before the ranks have saved; from here it is read to the end.
start_relay() {
  local folder
  folder=$(mktemp -d)
  mkfifo "$folder/pipe"
  (
    trap '' INT TERM HUP QUIT USR1 USR2 PIPE
    exec < "$folder/pipe" >&"$2" 2> /dev/null
    cat || true
    exec cat > /dev/null
  ) &
  relays+=($!)
  exec {relay_fd}> "$folder/pipe"
  printf -v "$1" %s "$relay_fd"
  rm -r "$folder"
}

ask_to_end() {
  local now=${EPOCHREALTIME/[.,]/}  # microseconds
  if [ -n "$mpirun_asked" ] && [ $((now - mpirun_asked)) -ge 1000000 ]; then
    echo "$(basename "$0"): $1 again: all ranks end at once" >&2 || true
    kill -TERM "$mpirun_pid" 2> /dev/null || true
    return 0
  fi
  if [ -n "$mpirun_asked" ]; then return 0; fi  # twice at once: `timeout`, a closing terminal
  mpirun_asked=$now
  echo "$(basename "$0"): $1: the ranks are asked to save and end; once more ends them at once" >&2 || true
  kill -USR2 "$mpirun_pid" 2> /dev/null || true
}
