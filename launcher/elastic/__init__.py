"""The worker side: how a process becomes a rank, and what training code imports."""
