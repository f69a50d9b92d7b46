"""`distgrad doctor`: what is wrong with this environment, said before a job runs into it, and what puts it right.

    finding.py     one thing that was looked at, what was found, and the fix
    installed.py   versions, the MPI that mpi4py loads, the TensorFlow that Horovod was built for
    machine.py     shared memory, GPUs, ports, and what a launcher has left in the environment
    sums.py        a world of every engine: its real sums against the exact answer
    traps.py       what this Keras does by itself under a strategy, tried out
    examine.py     all of it in order, and as a table or JSON
    bug_report.py  `distgrad env`: what to paste into a bug report

Whatever might hang or crash runs in a process of its own, under a clock. TensorFlow is loaded only there.
"""
