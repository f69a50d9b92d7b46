"""`distgrad doctor`: what is wrong with this environment, found before a job fails by it, and the fix.

    finding.py     the result of one check
    processes.py   programs that are run under a time limit
    installed.py   checks of versions, of the MPI that mpi4py loads, of the TensorFlow that Horovod was built for
    machine.py     checks of shared memory, GPUs, ports, and the variables of an outer launcher
    sums.py        a job of every engine, whose sums are compared with the exact answer
    examine.py     all checks in order, printed as a table or JSON
    bug_report.py  `distgrad env`: the text to paste into a bug report

Whatever might hang or crash runs in a process of its own, under a time limit. TensorFlow is loaded only there.
"""
