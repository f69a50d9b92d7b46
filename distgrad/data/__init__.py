"""Batches and datasets: their rows, how those are cut for the workers, and how far a training has come in them.

batch.py      nests of tensors with rows: converting, counting, cutting
sharding.py   the rows of each worker
pipeline.py   what tf.data does not tell: its shuffling, its tuning thread
cursor.py     how far a training has come in its data, and how to get there again
"""
