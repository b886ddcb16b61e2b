"""The pure core: what is to be done about what happened. No I/O, no clock, no randomness, no asyncio, no torch."""
