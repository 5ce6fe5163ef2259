"""The `reticent` command: subcommands that load when called, and errors that are one line.

Room: cli. May import click only; a subcommand's file imports what it needs.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final, NoReturn

import click

from reticent.cli._show import plain
from reticent.errors import ReticentError

# Name -> what `reticent --help` says. The command is `command` in `reticent.cli.<name>`.
SUBCOMMANDS: Final = MappingProxyType(
    {
        "train": "Train a model privately with a recipe.",
        "recipes": "List the recipes.",
        "plan": "Show what a private run would do and cost, without reading data.",
        "hardware": "Measure this machine, for reticent plan --hardware.",
        "simulate": "Try a large run's settings at small batches. NOT private by itself.",
        "account": "State the epsilon of numbers, or of one or several runs.",
        "verify": "Check a run: ledger, checkpoints, result, epsilon.",
        "audit": "Try to refute the epsilon of a run, a recipe or a trainer.",
        "resume": "Go on with a run that was stopped.",
        "sweep": "Run a recipe with many settings, in parallel.",
        "report": "Write the HTML report of a run.",
        "compare": "Lay runs side by side: epsilon, accuracy, settings.",
        "predict": "Label new images, rows or texts with a run's model.",
        "generate": "Continue prompts with a run's language model.",
        "features": "Compute features with a frozen model, once, into a store.",
    }
)

USAGE_STATUS: Final = 2


class LazyGroup(click.Group):
    """A group that imports a subcommand only when it is called, and reports errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        return import_module(f"reticent.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line; as a program, exit with status 2 and one line on bad input."""
        name = prog_name or "reticent"
        try:
            result = super().main(
                args=args,
                prog_name=name,
                complete_var=complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        except ReticentError as error:
            if not standalone_mode:
                raise
            _refuse(name, str(error), USAGE_STATUS)
        except click.ClickException as error:
            if not standalone_mode:
                raise
            _refuse(name, _explained(error), error.exit_code)
        except OSError as error:
            if not standalone_mode:
                raise
            where = "" if error.filename is None else f": '{error.filename}'"
            _refuse(name, f"{error.strerror or error}{where}.", USAGE_STATUS)
        except click.Abort:
            if not standalone_mode:
                raise
            _refuse(name, "interrupted.", 130)
        if not standalone_mode:
            return result
        sys.exit(result if isinstance(result, int) else 0)


def _explained(error: click.ClickException) -> str:
    """Click's message, with where to read more."""
    message = error.format_message()
    if isinstance(error, click.UsageError) and error.ctx is not None:
        message += f" Try '{error.ctx.command_path} --help'."
    return message


def _refuse(name: str, message: str, status: int) -> NoReturn:
    click.echo(f"{name}: error: {plain(' '.join(message.split()))}", err=True)
    sys.exit(status)


@click.command(
    "reticent",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train PyTorch models with differential privacy. A plan fixes what runs; a ledger records what ran.",
    invoke_without_command=True,
)
@click.version_option(package_name="reticent", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
