#!/usr/bin/env bash
# By hand with Open MPI: HOSTS=h1:4,h2:4 launch/clusters/mpirun.sh train.py    (the default is HOSTS=localhost:2)
# `distgrad run -H "$HOSTS"` does the same with Open MPI 5 and MPICH, too, and launches again after a lost worker.
set -euo pipefail
hosts=${HOSTS:-localhost:2}
if [ $# = 0 ]; then set -- "$(dirname "$0")/../train_digits.py"; fi

# As many compute threads as cores for each worker. More threads than cores only take turns.
workers=$(echo "$hosts" | tr , '\n' | head -n 1 | cut -s -d : -f 2)
cores=$(nproc)
export TF_NUM_INTRAOP_THREADS=${TF_NUM_INTRAOP_THREADS:-$((cores > ${workers:-1} ? cores / ${workers:-1} : 1))}
# Open MPI asks to be told twice that a container's root may start it.
if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
# Without ssh it would give up, although all workers are on this host.
if ! command -v ssh >/dev/null; then export OMPI_MCA_plm=isolated; fi

# --bind-to none   by itself Open MPI gives each of two workers one core, however many there are
# -x NAME          by name: a value in a command line can be read by every user of the machine
exec mpirun -H "$hosts" --bind-to none -x TF_NUM_INTRAOP_THREADS python "$@"
