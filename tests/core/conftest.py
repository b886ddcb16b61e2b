from __future__ import annotations

from hypothesis import HealthCheck, settings

# The same examples on every run; no deadline for one example, because the machines that run the tests are shared.
settings.register_profile(
    "tlaunch", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tlaunch")
