#!/usr/bin/env bash
# By hand with Horovod: HOSTS=h1:4,h2:4 launch/clusters/horovodrun.sh train.py
# `distgrad run --backend horovod` does the same, and returns the workers' own exit status, not 1 for every failure.
set -euo pipefail
hosts=${HOSTS:-localhost:2}
if [ $# = 0 ]; then set -- "$(dirname "$0")/../train_digits.py"; fi
workers=$(echo "$hosts" | tr , '\n' | cut -d : -f 2 | paste -s -d + | { read -r sum; echo $((sum)); })

# Gloo needs nothing but TCP. Its rendezvous accepts connections from anyone: keep it on a trusted network.
# Over MPI instead:  DISTGRAD_BACKEND=horovod horovodrun --mpi ...   (its workers look like any mpirun's)
#   and with Open MPI 5 also  --binding-args="--bind-to none --map-by slot"
# It writes its whole environment into command lines, where every user of the machine can read it. So it is given
# nothing but what it needs.
exec env -i PATH="$PATH" HOME="$HOME" PYTHONPATH="${PYTHONPATH:-}" TF_NUM_INTRAOP_THREADS="${TF_NUM_INTRAOP_THREADS:-1}" \
    horovodrun --gloo -H "$hosts" -np "$workers" python "$@"
