"""`reticent recipes`: what can be trained by name.

Room: cli.
"""

import json

import click


@click.command("recipes", short_help="List the recipes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: name -> summary and settings.")
def command(as_json: bool) -> None:
    """List the recipes with one line about each. Reads no data.

    Their settings: reticent train RECIPE --dry-run.
    """
    from reticent.recipes import recipes  # torch is slow to import; --help should not wait for it

    found = recipes()
    if as_json:
        listed = {
            name: {"summary": recipe.summary, "settings": list(recipe.config.model_fields)}
            for name, recipe in found.items()
        }
        click.echo(json.dumps(listed))
        return
    width = max(map(len, found))
    for name, recipe in found.items():
        click.echo(f"{name:{width}}  {recipe.summary}")
