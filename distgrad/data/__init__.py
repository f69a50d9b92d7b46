"""Batches and datasets: rows, how they are cut for the workers, and how far a training has come in them.

batch.py      nests of tensors with rows: converting, counting, cutting
sharding.py   the rows of each worker
pipeline.py   the shuffling and the autotuning thread of a tf.data pipeline
cursor.py     how far a training has come in its data, and how to get there again
"""
