"""The turns that are timed, one module for each kind of job. Each has `join()`, which returns a `worker.JobRank`.

plain_mpi.py       memcpy, and MPI's own Allreduce, without TensorFlow
keras_mpi.py       distgrad over MPI, and the same steps without communication
keras_alone.py     Keras's own fit in one process that has all cores
keras_horovod.py   Horovod's operations in a hand-written step, and distgrad over Horovod
keras_mwms.py      MultiWorkerMirroredStrategy in a hand-written step, and distgrad over it
torch_ddp.py       PyTorch's DistributedDataParallel over Gloo

distgrad_turns.py  distgrad's sum and step over any communicator
keras_fit.py       `fit`, distgrad's and Keras's own
by_hand.py         the step as a careful user writes it, given the peer's reduction
"""
