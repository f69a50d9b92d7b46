"""Sums over workers: the communicator, and one file for each engine.

    communicator.py    the communicator, and what follows from its sum: broadcasts, exchanged texts, barriers
    solo.py            one process, one device
    mpi.py             mpi4py, under mpirun
    mpi_presence.py    who waits, who works and who is silent
    mpi_shutdown.py    how an MPI job ends
    horovod.py         Horovod, under horovodrun
    tf_distribute.py   MultiWorkerMirroredStrategy or MirroredStrategy
    window.py          memory that the compiled core adds up vectors in
    windowed.py        a communicator whose sums go through that memory
    shared_window.py   the same memory for all MPI ranks of a host
    free_memory.py     how much memory a process may still take
    between_hosts.py   the sum between hosts
    rounded_sums.py    the same as bfloat16
    compression.py     whether a vector goes that way
    vectors.py         vectors in pieces, the division of their sum, and what is known of it
    moments.py         sum, sum of squares, largest entry and non-finite count of a vector
    agreement.py       the check that all workers mean the same, before the first sum

Only the engines' files import a foreign engine. Nothing here knows models or Keras.
"""
