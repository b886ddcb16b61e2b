"""Asynchronous sharded checkpoints: safetensors shards, one JSON manifest, no pickle, no collective while saving.

From the ground up; what stands first knows nothing of what follows, and only the last line knows torch:

- ``region``, ``dtypes``, ``values``: boxes in tensors, element types, what is not a tensor as JSON
- ``manifest``, ``layout``: what a checkpoint says of itself, and where it lies
- ``files``: the few operations on a file system that everything else is made of
- ``shard``, ``commit``, ``catalog``, ``reading``: writing, committing, finding and reading checkpoints

The format is specified in ``docs/checkpoint-format.md``.
"""
