"""The checksum of a shard's blocks: CRC-32, as zlib has it."""

from __future__ import annotations

try:
    from zlib_ng.zlib_ng import crc32
except ImportError:  # the same numbers, and five times as much work
    from zlib import crc32

__all__ = ["crc32"]
