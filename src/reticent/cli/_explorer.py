"""`reticent plan --open`: the plan explorer in the browser.

Room: cli.
"""

import webbrowser
from collections.abc import Mapping

import click

from reticent.errors import ConfigError


def refuse_idle(options: Mapping[str, bool]) -> None:
    """Refuse options that the explorer would not read.

    Args:
        options: name -> whether it was given.
    """
    idle = [name for name, given in options.items() if given]
    if idle:
        raise ConfigError(
            f"The explorer does not read {', '.join(idle)}: with --open give only where its knobs stand at "
            "first: --epsilon, --delta, --num-examples, --expected-batch-size and --num-steps.",
            code="plan-explorer",
        )


def open_explorer(given: Mapping[str, float | None], *, browser: bool) -> None:
    """Serve the explorer until Ctrl-C.

    Args:
        given: where its knobs stand at first; None for their own start.
        browser: open it there; its address is printed in any case.
    """
    from reticent.report import Explorer, starting_values  # slow to import; --help should not wait for it

    explorer = Explorer(starting_values(given))
    click.echo(explorer.url)
    click.echo("Ctrl-C ends it.", err=True)
    if browser:
        webbrowser.open(explorer.url)
    try:
        explorer.serve()
    except KeyboardInterrupt:
        click.echo("", err=True)
