"""Agents and the controller: asyncio shells around the pure core. Never imports torch."""
