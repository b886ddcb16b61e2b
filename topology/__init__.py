"""The machine as a tree, and where ranks go on it. Pure: no torch, no store, no clock."""
