"""What crosses the border between processes: lifelines, messages with descriptors, and the types that they carry."""
