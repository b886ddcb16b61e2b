"""``tlaunch SCRIPT``: read the options, start the job, show it."""

from __future__ import annotations

import os
import sys
import traceback

from tlaunch.errors import TlaunchError
from tlaunch.launcher.cli import config
from tlaunch.launcher.cli.options import RunOptions
from tlaunch.launcher.cli.request import build
from tlaunch.launcher.hosts.request import RunRequest
from tlaunch.launcher.observe.view import View


class InternalError(TlaunchError):
    """A bug of tlaunch; the message names the file with the traceback."""


def run(given: RunOptions) -> int:
    """Run a job to its end and return its exit code.

    Raises:
        TlaunchError: it could not be started.
    """
    if given.version:
        return _show_version()
    if given.config is not None:
        given = given.over(config.load(given.config))
    request = build(given, os.environ)
    from tlaunch.launcher.hosts.local import run_local

    view = _view(request)
    try:
        return run_local(request, view)
    except TlaunchError:
        raise
    except Exception as error:
        # A bug of ours: the user gets one line, the log directory the rest.
        path = request.log_dir / "internal-error.log"
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        message = f"internal error: {type(error).__name__}: {error}; the traceback is in {path}"
        raise InternalError(message) from error
    finally:
        view.close(None)


def _view(request: RunRequest) -> View:
    if sys.stdout.isatty():
        from tlaunch.launcher.observe.live import LiveView

        return LiveView(request.spec.job_id)
    from tlaunch.launcher.observe.plain import PlainView

    return PlainView(request.spec.job_id)


def _show_version() -> int:
    from importlib.metadata import version

    sys.stdout.write(f"tlaunch {version('tlaunch')}\n")
    return 0
