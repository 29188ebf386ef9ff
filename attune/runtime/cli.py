"""Command lines: the parser of a stage (`python -m stages.dpo e1`) and of a command (`python -m attune chat`).

A stage declares its arguments at its entry point, before it reads files or imports heavy libraries::

    if __name__ == "__main__":
        with reported():
            arguments = stage_arguments(__doc__, variant="a key of variants")
            main(load(), arguments.variant)

`--help` prints the docstring and ends with status 0; an unknown or missing argument ends with status 2.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter


def stage_arguments(doc: str | None, /, **arguments: str) -> Namespace:
    """Parse the command line of the stage that this process runs.

    Args:
        doc: the docstring of the stage's module, which `--help` prints.
        arguments: each positional argument with its help text, in order.

    Raises:
        SystemExit: status 0 for `--help`, 2 for an argument that is unknown, missing or refused.
    """
    parser = make_parser(f"python -m {main_module()}", doc)
    for name, text in arguments.items():
        parser.add_argument(name, help=text)
    return parser.parse_args()


def command_parser(command: str, doc: str | None) -> ArgumentParser:
    """The parser of `python -m attune <command>`, still without arguments; `doc` is the module's docstring."""
    return make_parser(f"python -m attune {command}", doc)


def make_parser(program: str, doc: str | None) -> ArgumentParser:
    """A parser that prints `doc` verbatim and accepts no abbreviated options."""
    return ArgumentParser(
        prog=program, description=doc, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )


def main_module() -> str:
    """The name of the module that `python -m` started, such as `stages.dpo`."""
    spec = sys.modules["__main__"].__spec__
    return "" if spec is None else spec.name
