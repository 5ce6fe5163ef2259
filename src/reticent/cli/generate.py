"""`reticent generate RUN`: texts from the model that a run kept.

Room: cli.
"""

import json
import os
from pathlib import Path

import click


@click.command("generate", short_help="Continue prompts with a run's model, and score the answers.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", "prompts", multiple=True, help="A text to continue; repeatable.")
@click.option("--data", type=click.Path(path_type=Path), help="A file of prompts.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["lines", "jsonl", "e2e", "dart", "webnlg", "persona-chat"]),
    help="Of --data.  [default: jsonl for .jsonl, else lines]",
)
@click.option("--max-new-tokens", default=64, show_default=True, help="At most so many tokens a text.")
@click.option("--beams", default=1, show_default=True, help="Width of beam search.")
@click.option("--top-p", type=float, help="Sample from the likeliest tokens of this probability together.")
@click.option("--temperature", default=1.0, show_default=True, help="Of sampling.")
@click.option("--seed", default=0, show_default=True, help="Of sampling; costs no privacy.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Prompts at once."
)
@click.option("--metric", "metrics", multiple=True, help="bleu, rouge_l, nist or meteor; repeatable.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write JSON lines to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def command(
    run: Path,
    prompts: tuple[str, ...],
    data: Path | None,
    form: str | None,
    max_new_tokens: int,
    beams: int,
    top_p: float | None,
    temperature: float,
    seed: int,
    batch_size: int,
    metrics: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Continue prompts with the model in folder RUN, greedily unless beams or top-p are asked for.

    Only the weights are read: nothing is added to the privacy the run has spent. A file with references
    lets the answers be scored.
    """
    if bool(prompts) == (data is not None):
        raise click.UsageError("Give prompts with --prompt or a file with --data, one of the two.")
    if form is not None and data is None:
        raise click.UsageError("--format is of --data, which is not given.")
    from rich.progress import Progress

    from reticent.recipes.text import Decoding, SourceTargets, answer, read_prompts

    from ._run_screen import progress_console

    decoding = Decoding(
        max_new_tokens=max_new_tokens, beams=beams, top_p=top_p, temperature=temperature, seed=seed
    )
    rows = (
        [SourceTargets(source=prompt, targets=()) for prompt in prompts]
        if data is None
        else read_prompts(data, form)
    )
    with Progress(console=progress_console(), transient=True) as bar:
        task = bar.add_task("generating", total=len(rows))
        answers = answer(
            run,
            rows,
            decoding=decoding,
            metrics=metrics,
            batch_size=batch_size,
            on_batch=lambda done: bar.update(task, completed=done),
        )
    lines = [
        json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False)
        for prompt, text in zip(answers.prompts, answers.texts, strict=True)
    ]
    if out is not None:
        _write(out, lines)
    shown = {"run": str(run), "num_texts": len(lines), **answers.scores, "out": str(out) if out else None}
    if as_json:
        texts = {} if out else {"texts": list(answers.texts)}
        click.echo(json.dumps({**shown, **texts}, allow_nan=False))
        return
    if out is None:
        for prompt, text in zip(answers.prompts, answers.texts, strict=True):
            click.echo(f"{click.style(prompt, bold=True)}{text}\n")
    for name, score in answers.scores.items():
        click.echo(f"{name:8} {score:.4g}")
    if out is not None:
        click.echo(str(out))


def _write(path: Path, lines: list[str]) -> None:
    """All lines or none: a killed run leaves no half file."""
    beside = path.with_name(f".{path.name}.part")
    beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(beside, path)
