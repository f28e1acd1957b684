#!/bin/bash
# A throw-away Slurm of two nodes on this machine, to try a job on: no systemd, no accounts, nothing outside one folder.
#
#     launch/slurm_test_cluster.sh start DIR     # then: export SLURM_CONF=DIR/slurm.conf
#     launch/slurm_test_cluster.sh stop DIR
#
# Needs root and Debian's packages: apt-get install -y --no-install-recommends slurm-wlm munge
set -euo pipefail

usage() { echo "usage: launch/slurm_test_cluster.sh start|stop DIR" >&2; exit 2; }
[ $# -eq 2 ] || usage
action=$1 dir=$2
export PATH="$PATH:/usr/sbin:/sbin"

free_ports() { python3 - "$1" <<'PYTHON'
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in held:
    one.bind(("", 0))
print(*(one.getsockname()[1] for one in held))
PYTHON
}

# The first process's host is where the others look for the coordinator, and Slurm sorts hosts by name: the first bears this machine's own
# name, which resolves; the second, zz2, is a name for Slurm alone.
start() {
    for program in munged slurmctld slurmd sbatch srun; do
        command -v "$program" >/dev/null || { echo "$program is missing: apt-get install -y --no-install-recommends slurm-wlm munge" >&2; exit 2; }
    done
    [ "$(id -u)" -eq 0 ] || { echo "Slurm's daemons are started by root here" >&2; exit 2; }
    [ ! -e "$dir/slurm.conf" ] || { echo "$dir holds a cluster already; stop it first, or choose another folder" >&2; exit 2; }
    mkdir -p "$dir"/state "$dir"/spool-1 "$dir"/spool-2
    dir=$(cd "$dir" && pwd)
    chmod 755 "$dir"
    local host ctl one two
    host=$(hostname -s)
    read -r ctl one two < <(free_ports 3)
    head -c 1024 /dev/urandom > "$dir/munge.key"
    chmod 400 "$dir/munge.key"
    # The first job's number is drawn, because the coordinator's port follows from it and a machine may have two such clusters.
    cat > "$dir/slurm.conf" <<CONF
ClusterName=dlmjax-test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$ctl
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CredType=cred/munge
FirstJobId=$((RANDOM + 1))
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
NodeName=$host NodeHostname=$host NodeAddr=127.0.0.1 Port=$one CPUs=2 RealMemory=4000
NodeName=zz2 NodeHostname=zz2 NodeAddr=127.0.0.1 Port=$two CPUs=2 RealMemory=4000
PartitionName=test Nodes=$host,zz2 Default=YES MaxTime=INFINITE State=UP
CONF
    export SLURM_CONF=$dir/slurm.conf
    setsid munged --force --key-file "$dir/munge.key" --socket "$dir/munge.socket" --pid-file "$dir/munged.pid" \
        --log-file "$dir/munged.log" --seed-file "$dir/munged.seed"
    setsid slurmctld -D -f "$SLURM_CONF" > "$dir/slurmctld.out" 2>&1 < /dev/null &
    setsid slurmd -D -N "$host" -f "$SLURM_CONF" > "$dir/slurmd-1.out" 2>&1 < /dev/null &
    setsid slurmd -D -N zz2 -f "$SLURM_CONF" > "$dir/slurmd-2.out" 2>&1 < /dev/null &
    for _ in $(seq 150); do
        [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = 2 ] && { echo "two nodes are idle; export SLURM_CONF=$SLURM_CONF"; return; }
        sleep 0.2
    done
    echo "the nodes did not come up within 30 seconds; see $dir/*.log and $dir/*.out" >&2
    stop
    exit 1
}

stop() {
    export SLURM_CONF=$dir/slurm.conf
    [ -e "$SLURM_CONF" ] || { echo "$dir holds no cluster" >&2; exit 2; }
    scancel --quiet --user=root 2>/dev/null || true
    # A daemon that is gone ends no job: its processes would stay.
    for _ in $(seq 100); do [ -n "$(squeue -h 2>/dev/null)" ] || break; sleep 0.2; done
    local file pid
    for file in "$dir"/slurmctld.pid "$dir"/slurmd-*.pid "$dir"/munged.pid; do
        [ -e "$file" ] && pid=$(cat "$file") || continue
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -KILL "$pid" 2>/dev/null || true
    done
    rm -f "$dir/slurm.conf" "$dir/munge.key"
}

case $action in start) start ;; stop) stop ;; *) usage ;; esac
