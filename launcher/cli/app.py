"""The command line as typer sees it. Nothing is done here: parsing returns what is to be called."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import typer
from typer.main import get_command

from tlaunch.errors import InputError
from tlaunch.launcher.cli import checkpoint, compare, convert, discover, options, topology
from tlaunch.launcher.cli.flags import Flag, flags_of, read_words
from tlaunch.launcher.cli.nearest import did_you_mean

T = TypeVar("T")

Action = Callable[[], int]
"""What the user asked for; returns the exit code."""

# The base of what typer raises for words that it cannot make sense of. typer exports only this one subclass.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

NAME = "tlaunch"
_SUMMARY = (
    "Start a PyTorch training job on many nodes, and keep it running while the hardware fails under it.\n\n"
    "The words after SCRIPT are its own. A first word that names a command below is that command; "
    "run a script of such a name as ./status."
)


def parse(words: Sequence[str]) -> Action:
    """Find out what the words of the command line ask for.

    Raises:
        InputError: they make no sense; the message says which and what was expected.
    """
    if words and words[0] == "--help":
        return show_help  # typer would load pydantic to read this one word
    app = _everything()
    names = [command.name for command in app.registered_commands] + [group.name for group in app.registered_groups]
    if not words or words[0] not in names:
        app = _run_only()
    try:
        action = get_command(app).main(list(words), prog_name=NAME, standalone_mode=False)
    except _UsageError as error:
        raise InputError(_sentence(error, words)) from None
    # typer itself has done what there was to do when it shows the help of a command: then this is an exit code.
    return cast("Action", action) if callable(action) else lambda: int(action or 0)


def show_help() -> int:
    """Show the one page with the options of a run and all commands."""
    get_command(_everything()).main(["--help"], prog_name=NAME, standalone_mode=False)
    return 0


def _everything() -> typer.Typer:
    """Return the application with its commands. Its callback has the options of a run, for the help page only."""
    app = _typer(subcommand_metavar="SCRIPT|COMMAND [ARGS]...", help=_SUMMARY)
    app.callback()(_words_of(options.RunOptions, _run, leave_out=("help", "script", "args")))
    _add(app, "status", options.StatusOptions, "status", "Show a job: its nodes, ranks, spares, and what happened.")
    _add(app, "stop", options.StopOptions, "stop", "End a job in order.")
    _add(app, "drain", options.DrainOptions, "drain", "Move the ranks of a node or GPU away and leave it empty.")
    _add(app, "kill", options.KillOptions, "kill", "Kill a rank, GPU or node, to try a failure out.")
    machines = _typer(help="Look at descriptions of machines.")
    _add(machines, "show", topology.ShowOptions, "show", "Show the machine that a file describes.", module="topology")
    _add(machines, "plan", topology.PlanOptions, "plan", "Show where the ranks of a job would go.", module="topology")
    summary = "Show what each source says about where nodes are, and what wins."
    _add(machines, "discover", discover.DiscoverOptions, "discover", summary, module="discover")
    app.add_typer(machines, name="topology")
    saved = _typer(help="Look at checkpoints, check and compare them, exchange them with others, and remove old ones.")
    for name, module, cls, summary in (
        ("ls", checkpoint, checkpoint.ListOptions, "List the checkpoints of a job."),
        ("show", checkpoint, checkpoint.ShowOptions, "Show what a checkpoint holds."),
        ("verify", checkpoint, checkpoint.VerifyOptions, "Compare every byte with its checksum."),
        ("diff", compare, compare.DiffOptions, "Show what differs between two checkpoints."),
        ("export", convert, convert.ExportOptions, "Write a model as transformers and safetensors load it."),
        ("import", convert, convert.ImportOptions, "Make a checkpoint of what torch or Hugging Face has written."),
        ("prune", checkpoint, checkpoint.PruneOptions, "Remove old checkpoints."),
    ):
        function = "import_" if name == "import" else name
        _add(saved, name, cls, function, summary, module=module.__name__.rpartition(".")[2])
    app.add_typer(saved, name="checkpoint")
    return app


def _run_only() -> typer.Typer:
    """Return the application for a run, whose first word without dashes ends tlaunch's own options."""
    app = _typer()
    settings = {"allow_interspersed_args": False}
    app.command(context_settings=settings, add_help_option=False)(_words_of(options.RunOptions, _run))
    return app


def _typer(**settings: Any) -> typer.Typer:  # noqa: ANN401  handed on
    # Boxes and colours only where somebody looks: they cost another 0.1 s.
    mode: Any = "rich" if sys.stdout.isatty() else None
    return typer.Typer(rich_markup_mode=mode, add_completion=False, pretty_exceptions_enable=False, **settings)


def _add(
    app: typer.Typer, name: str, cls: type[T], function: str, explanation: str, *, module: str = "commands"
) -> None:
    def action(given: T) -> int:
        found = importlib.import_module(f"tlaunch.launcher.cli.{module}")
        return int(getattr(found, function)(given))

    app.command(name, help=explanation)(_words_of(cls, action))


def _run(given: options.RunOptions) -> int:
    if given.help:
        return show_help()
    from tlaunch.launcher.cli.run import run

    return run(given)


def _words_of(cls: type[T], then: Callable[[T], int], leave_out: tuple[str, ...] = ()) -> Callable[..., Action]:
    """Return a function for typer whose parameters are the flags of ``cls``."""

    def read(**words: Any) -> Action:  # noqa: ANN401  text, or a list of text
        given = read_words(cls, words)
        return lambda: then(given)

    parameters = [_parameter(name, flag) for name, flag in flags_of(cls).items() if name not in leave_out]
    # typer reads the signature: it is made from the table, so that nothing is declared twice.
    vars(read)["__signature__"] = inspect.Signature(parameters)
    return read


def _parameter(name: str, flag: Flag) -> inspect.Parameter:
    kind: Any = bool if flag.metavar is None else list[str] | None if flag.many else str | None
    if flag.is_positional:
        default = typer.Argument(None, metavar=flag.metavar, help=flag.help, show_default=False)
    else:
        unset = None if flag.metavar else False
        shown = flag.metavar or ""  # without one typer shows <bool>
        default = typer.Option(
            unset, flag.name, metavar=shown, help=flag.help, rich_help_panel=flag.panel, show_default=False
        )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def _sentence(error: Exception, words: Sequence[str]) -> str:
    """Say in our words what typer complains about."""
    if not hasattr(error, "possibilities"):  # only its error about an unknown option has them
        message = str(getattr(error, "message", "")) or error.format_message()  # type: ignore[attr-defined]
        return message[:1].lower() + message[1:].rstrip(".")
    option = str(getattr(error, "option_name", ""))
    word = next((word for word in words if word.startswith(option)), option).partition("=")[0]
    context: Any = getattr(error, "ctx", None)
    known = [name for param in context.command.params for name in param.opts] if context else []
    hint = did_you_mean("--" + word.lstrip("-"), known) or f"; see {NAME} --help"
    return f"unknown flag {word}{hint}"
