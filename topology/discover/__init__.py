"""Where this node and those beside it stand, as far as the machine itself can tell.

From the ground up; a module imports only from those above it in this list:

- ``report``: what one source says; ``document``: files and JSON, read with limits
- ``visible``: ``CUDA_VISIBLE_DEVICES``
- ``library``, ``fabric``, ``gpus``, ``health``, ``nvml``: the driver
- ``slurm``, ``scontrol``, ``labels``, ``cloud``, ``described``: the other sources
- ``merge``: one answer out of all of them, and where they contradict each other
- ``gather``: asking all sources; ``shown``: tables (rich) and JSON
"""
