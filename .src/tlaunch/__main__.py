"""``tlaunch`` and ``python -m tlaunch``."""

from __future__ import annotations


def main() -> None:
    """Run the command line; it is imported only now, so that importing this module costs nothing."""
    from tlaunch.launcher.cli.main import main as command_line

    command_line()


if __name__ == "__main__":
    main()
