#!/bin/bash
# A Slurm cluster of one node on this machine, from Debian's packages, for `make soak ONLY=slurm`:
#
#   slurm.sh start FOLDER    installs the packages if they are missing (as root), writes FOLDER/slurm.conf and starts the daemons
#   slurm.sh stop FOLDER     stops the daemons
#   slurm.sh controller-down | controller-up | node-down | node-up FOLDER
#
# Set SLURM_CONF=FOLDER/slurm.conf for sbatch, srun and the other commands. Nothing outside FOLDER is written but the packages.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
# Debian 12. Another release: SLURM_VERSION=... MUNGE_VERSION=... as `apt-cache policy slurmctld munge` prints them.
SLURM_VERSION=${SLURM_VERSION:-22.05.8-4+deb12u3}
MUNGE_VERSION=${MUNGE_VERSION:-0.5.15-2+deb12u1}
action=${1:?start, stop, controller-down, controller-up, node-down or node-up} folder=$(realpath -m "${2:?a folder}")
# Paths of sockets have at most 107 characters, and munged wants a folder that only its user may write.
sockets=/tmp/soak-munge-$(id -u)-$(cksum <<<"$folder" | cut -d" " -f1)
export SLURM_CONF=$folder/slurm.conf
user=$(id -un)

fail() { echo "slurm.sh: $1" >&2; exit 1; }

install() {
  for package in slurmctld slurmd slurm-client; do wanted+=("$package=$SLURM_VERSION"); done
  for package in "${wanted[@]}" "munge=$MUNGE_VERSION"; do
    [ "$(dpkg-query -W -f '${Version}' "${package%%=*}" 2>/dev/null)" = "${package#*=}" ] || missing=yes
  done
  [ -n "${missing:-}" ] || return 0
  [ "$(id -u)" = 0 ] || fail "Slurm $SLURM_VERSION and munge $MUNGE_VERSION are not installed; run once as root: apt-get install ${wanted[*]} munge=$MUNGE_VERSION"
  export DEBIAN_FRONTEND=noninteractive
  policy=/usr/sbin/policy-rc.d  # the packages would start daemons of their own
  [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy; chmod +x $policy; trap "rm -f $policy" EXIT; }
  apt-get update -qq || true
  apt-get install -y -qq --no-install-recommends --allow-downgrades "${wanted[@]}" "munge=$MUNGE_VERSION" >/dev/null ||
    fail "apt-get does not have these versions; see SLURM_VERSION and MUNGE_VERSION in this script"
}

configure() {
  mkdir -p "$folder"/{state,spool,log} "$sockets"
  chmod 700 "$sockets"
  [ -e "$folder/munge.key" ] || (umask 077; head -c 1024 /dev/urandom >"$folder/munge.key")
  host=$(hostname -s) cpus=$(env -u OMP_NUM_THREADS nproc) memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
  ports=($(python3 -c 'import socket; ss = [socket.socket() for _ in "ab"]; [s.bind(("127.0.0.1", 0)) for s in ss]; print(*(s.getsockname()[1] for s in ss))'))
  [ "$cpus" -gt 1 ] || cpus=2  # for two ranks
  # Without cgroups, which a container may lack: memory is measured each second and a job that exceeds its share is killed.
  # cred_expire: a job that is queued again may start after this many seconds. Every job may use every core: tasks share them.
  cat >"$SLURM_CONF" <<CONF
ClusterName=soak
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmdPort=${ports[1]}
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$sockets/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmdParameters=config_overrides
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=5,bf_interval=5
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=soak Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4 DefMemPerNode=$((memory / 4))
CONF
}

running() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

end() {  # SIGTERM, then SIGKILL, to the process of a pid file
  running "$1" || return 0
  local pid; pid=$(cat "$1")
  kill "$pid"
  for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  kill -9 "$pid" 2>/dev/null || true
  rm -f "$1"
}

await() {  # the node is idle or at work
  for _ in $(seq 60); do
    case $(sinfo -h -o %t 2>/dev/null) in idle | mix | alloc) return 0 ;; esac
    sleep 1
  done
  tail -n 3 "$folder"/log/* >&2
  fail "the node does not come up"
}

kill_steps() {  # every process of every job, at once
  for step in $(pgrep -x slurmstepd); do
    tr '\0' '\n' <"/proc/$step/environ" 2>/dev/null | grep -qx "SLURM_CONF=$SLURM_CONF" || continue
    kill -9 $(descendants "$step") "$step" 2>/dev/null || true
  done
}

descendants() { for child in $(pgrep -P "$1"); do echo "$child"; descendants "$child"; done; }

case $action in
  start)
    install
    [ ! -e "$SLURM_CONF" ] || "$0" stop "$folder"
    rm -rf "$folder"/{state,spool}
    configure
    munged --force --key-file="$folder/munge.key" --socket="$sockets/socket" --pid-file="$folder/munged.pid" \
      --log-file="$folder/log/munged" --seed-file="$folder/munge.seed"
    slurmctld -c
    slurmd
    await
    sinfo --version
    ;;
  stop)
    [ -e "$SLURM_CONF" ] || exit 0
    if running "$folder/slurmctld.pid"; then scancel --user="$user" 2>/dev/null || true; fi
    end "$folder/slurmd.pid"
    kill_steps
    for daemon in slurmctld munged; do end "$folder/$daemon.pid"; done
    rm -rf "$sockets"
    ;;
  controller-down) end "$folder/slurmctld.pid" ;;
  controller-up) slurmctld; await ;;
  node-down)  # as when a machine loses its power
    kill -9 "$(cat "$folder/slurmd.pid")"
    rm -f "$folder/slurmd.pid"
    kill_steps
    ;;
  node-up) slurmd; await ;;
  *) fail "unknown action $action" ;;
esac
