"""Fault-tolerant, topology-aware launcher for PyTorch training."""
