"""From the tape to one flat vector, and back to the global gradient.

micro_batch.py       the gradients of one micro-batch
accumulate.py        micro-batches added up; window_accumulator.py, in memory that the workers share
checks.py            gradients whose shape, rows or values are not their variable's
flat_vector.py       gradients and scalars laid out as the one vector that is summed
sparse.py            which variables may have sparse gradients
global_gradient.py   the sum over the workers as the gradient of the whole global batch, with its statistics
all_reduce_gradients.py   the public `all_reduce_gradients()`, for a loop with a tape of its own
sum_gradients.py     the public `sum_gradients()`: the bare sum, without a step around it
"""
