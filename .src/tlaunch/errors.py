"""The one tree of exceptions.

``str(error)`` is one clear line: what happened, where, and what was expected or what to do next. The command line
prints it and leaves with ``exit_code``.
"""

from __future__ import annotations


class TlaunchError(Exception):
    """Base of every error that tlaunch raises on purpose."""

    exit_code = 1


class InputError(TlaunchError):
    """What the user gave cannot be used: a flag, a file, a script, a policy, an endpoint."""

    exit_code = 2
