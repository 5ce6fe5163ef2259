"""The command as a whole: what it loads, and that every refusal is one line and status 2."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from reticent.cli import main
from reticent.cli._app import SUBCOMMANDS

HEAVY = (
    "torch", "transformers", "dp_accounting", "scipy", "numpy", "matplotlib", "rich", "sklearn", "pandas",
    "pydantic", "jinja2", "cryptography",
)  # fmt: skip


def run(*arguments):
    return CliRunner().invoke(main, list(arguments))


def fresh_interpreter(*arguments):
    """Run the command in a new process; its output, and which heavy modules it had loaded by the end."""
    script = (
        "import sys, atexit\n"
        f"heavy = {HEAVY!r}\n"
        "atexit.register(lambda: print('loaded:', *[m for m in heavy if m in sys.modules]))\n"
        "from reticent.__main__ import main\n"
        f"main({list(arguments)!r}, prog_name='reticent')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, set(done.stdout.rpartition("loaded:")[2].split())


def test_help_lists_every_subcommand_and_loads_nothing():
    output, loaded = fresh_interpreter("--help")
    assert all(name in output for name in SUBCOMMANDS)
    assert loaded == set()


def test_plan_and_account_never_load_torch():
    _, loaded = fresh_interpreter(
        *"plan --delta 1e-5 --sampler full-batch --num-examples 10 --num-steps 1 --noise-multiplier 5".split()
    )
    assert "dp_accounting" in loaded  # the check can see a module that is there
    assert not loaded & {"torch", "transformers", "matplotlib"}
    _, loaded = fresh_interpreter(
        *"account --sampler full-batch --noise-multiplier 5 --num-steps 1 --delta 1e-5 --json".split()
    )
    assert not loaded & {"torch", "transformers", "matplotlib"}


def test_module_and_command_are_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "reticent", "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: reticent ")


def test_without_arguments_it_shows_the_help():
    assert run().output == run("--help").output


def test_no_subcommands_help_waits_for_anything_heavy():
    script = (
        "import sys, json\n"
        "from click.testing import CliRunner\n"
        "from reticent.cli import main\n"
        "seen = {}\n"
        f"for name in {list(SUBCOMMANDS)!r}:\n"
        "    result = CliRunner().invoke(main, [name, '--help'])\n"
        f"    heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "    seen[name] = [result.exit_code, result.output.split(chr(10))[0], heavy]\n"
        "print(json.dumps(seen))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name, (status, first_line, heavy) in json.loads(done.stdout).items():
        assert status == 0
        assert first_line.startswith(f"Usage: reticent {name} ")
        assert heavy == [], name


@pytest.mark.parametrize(
    ("shell", "typed", "expected"),
    [("bash", "reticent acc", "plain,account"), ("zsh", "reticent plan --num-st", "plain\n--num-steps\n")],
)
def test_shells_complete_subcommands_and_options(shell, typed, expected):
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", "from reticent.cli import main; main(prog_name='reticent')"],
        env={**os.environ, **words, "_RETICENT_COMPLETE": f"{shell}_complete"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert expected in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["--bogus"], "No such option"),
        (["plan"], "Missing option '--delta'"),
        (["account", "--num-steps", "many"], "'many' is not a valid integer"),
        (["account", "--sampler", "shuffle"], "is not one of 'poisson', 'full-batch'"),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("reticent: error: ")
    assert message in result.stderr
