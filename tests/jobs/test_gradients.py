"""Gradients that are not like their variables, and threads that share a communicator, in whole jobs."""

import pytest

from support.launching import launch, program
from support.lines import ERROR
from support.marks import first_as_a_rule

# At step 2 the last worker's gradient is of a row that its variable has not; what the trace tells is right.
BAD_ROW = """
    import keras, numpy as np, tensorflow as tf, distgrad
    comm = distgrad.connect(timeout=20)
    class Odd(keras.layers.Layer):
        def build(self, _):
            self.kernel = self.add_weight(shape=(3, 2), name="kernel")

        def call(self, x):
            rows = tf.cast(x[:1, 0], tf.int64)

            @tf.custom_gradient
            def odd(kernel):
                return tf.identity(kernel), lambda up: tf.IndexedSlices(tf.ones((1, 2)), rows, tf.constant([3, 2]))
            return x @ odd(self.kernel.value)

    with comm.scope():
        model = keras.Sequential([keras.Input((3,)), Odd(name="odd")])
    step = distgrad.DistributedStep(model, "mse", "sgd", comm=comm, log_every=0)
    x = np.ones((4, 3), "float32")
    for number in range(3):
        step(x, np.ones((4, 2), "float32"))
        print("took step", number + 1, flush=True)
        if comm.rank + comm.span == comm.size:
            x[:] = 2.0**60
    """


@pytest.mark.fault(38)
@first_as_a_rule("mpi", "horovod-gloo", "mwms", "mirrored")
def test_a_row_that_no_variable_has_ends_the_job(engine: str) -> None:
    jobs = launch(engine, 2, program(BAD_ROW))
    said = "".join(job.err + job.out for job in jobs)
    # horovodrun ends with a status of its own, and tells that of the worker.
    assert 65 in {job.status for job in jobs} or "Exit code: 65" in said, said[-3000:]
    assert f"the gradient of variable 'sequential/odd/kernel' is of row {1 << 60}, and" in said
    assert "error[DG024]" in said
    assert len(ERROR.findall("".join(job.err for job in jobs))) == 1 or engine.startswith("horovod")
    assert "took step 1" in said
    assert "took step 2" not in said


THREADS = """
    import threading, distgrad, numpy as np, tensorflow as tf
    from distgrad.collectives.vectors import Division
    comm = distgrad.connect(timeout=4)
    wrong, refused = [], []

    def work(thread):
        for _ in range(200):
            try:
                total = comm.process_sum(np.full(5000, thread + 1.0, "float32"))
            except distgrad.DistgradError as error:
                refused.append(error.code)
                return
            if not refused and (total != 2 * (thread + 1)).any():
                wrong.append(thread)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print("refused", sorted(refused), flush=True)
    """


@pytest.mark.fault(40)
def test_two_threads_of_several_ranks_are_refused() -> None:
    """Whichever rank notices first; the others then wait for it, until their deadline ends the job."""
    (job,) = launch("mpi", 2, program(THREADS))
    assert "refused ['DG002'" in job.out, job.out + job.err
