"""Clients: the command each one runs, what it says when it fails, and that none of them hangs."""

import http.client
import io
import sys
import time
import urllib.error
import urllib.request

import pytest

from reticent.data._clients import (
    Outcome,
    _StayOnHttps,
    get_apt,
    get_https,
    get_npm,
    get_pip,
    open_https,
    run_command,
)
from reticent.data._records import RemoteFile, Source
from reticent.errors import DataError


@pytest.fixture
def source():
    return Source(
        kind="any",
        package="tiny",
        version="1.0",
        files=tuple(
            RemoteFile(name=n, sha256="0" * 64, size=6, url=f"https://host.invalid/{n}") for n in ("a", "b")
        ),
    )


class Commands:
    """Answers commands in turn and remembers them."""

    def __init__(self, *outcomes):
        self.outcomes, self.commands = list(outcomes), []

    def __call__(self, command, folder, update):
        self.commands.append(list(command))
        return self.outcomes.pop(0)


OK = Outcome(status=0, output="")
UNKNOWN = Outcome(status=100, output="E: Unable to locate package tiny\n")


def found(name):
    return f"/bin/{name}"


def absent(name):
    return None


def test_pip_fetches_a_pinned_wheel_without_dependencies_or_building(source, tmp_path, talk):
    run = Commands(OK)
    get_pip(source, tmp_path, talk, run=run, find=found)
    (command,) = run.commands
    assert command[-1] == "tiny==1.0"
    assert {"download", "--no-deps", "--only-binary=:all:"} <= set(command)


def test_pip_takes_a_source_archive_only_by_its_digest_and_fetches_nothing_to_build_it(tmp_path, talk):
    archive = RemoteFile(name="tiny-1.0.tar.gz", sha256="ab" * 32, size=6)
    source = Source(kind="pip", package="tiny", version="1.0", files=(archive,))
    run = Commands(OK)
    get_pip(source, tmp_path, talk, run=run, find=found)
    (command,) = run.commands
    assert {"--no-deps", "--no-binary=tiny", "--require-hashes", "--no-build-isolation"} <= set(command)
    assert "tiny==1.0" not in command  # only through the file that pins it
    assert (tmp_path / command[-1]).read_text() == f"tiny==1.0 --hash=sha256:{'ab' * 32}\n"


def test_pip_of_the_path_serves_where_this_python_has_none(source, tmp_path, talk, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run = Commands(OK)
    get_pip(source, tmp_path, talk, run=run, find=found)
    assert run.commands[0][:2] == ["/bin/pip", "download"]
    with pytest.raises(DataError, match="pip is not installed"):
        get_pip(source, tmp_path, talk, run=run, find=absent)


def test_npm_packs_the_pinned_version_and_runs_no_scripts(source, tmp_path, talk):
    run = Commands(OK)
    get_npm(source, tmp_path, talk, run=run, find=found)
    (command,) = run.commands
    assert command[:2] == ["/bin/npm", "pack"]
    assert command[-1] == "tiny@1.0"
    assert "--ignore-scripts" in command


def test_a_missing_program_is_a_reason(source, tmp_path, talk):
    with pytest.raises(DataError, match="npm is not installed"):
        get_npm(source, tmp_path, talk, run=Commands(), find=absent)
    with pytest.raises(DataError, match="apt-get is not installed"):
        get_apt(source, tmp_path, talk, run=Commands(), find=absent, is_root=lambda: True)


def test_a_failed_command_gives_its_error_line_as_reason(source, tmp_path, talk):
    run = Commands(Outcome(status=1, output="hello\nnpm error code E404\nbye\n"))
    with pytest.raises(DataError, match="npm ended with status 1: npm error code E404") as caught:
        get_npm(source, tmp_path, talk, run=run, find=found)
    assert caught.value.code == "data-unreachable"


def test_pip_names_itself_and_its_error_rather_than_a_warning(source, tmp_path, talk):
    run = Commands(Outcome(status=1, output="WARNING: broken by 'Error'\nERROR: no such version\n"))
    with pytest.raises(DataError, match="pip ended with status 1: ERROR: no such version"):
        get_pip(source, tmp_path, talk, run=run, find=found)


def test_a_program_that_cannot_be_run_is_a_reason(source, tmp_path, talk):
    def run(command, folder, update):
        raise PermissionError("not executable")

    with pytest.raises(DataError, match="npm could not be run: not executable"):
        get_npm(source, tmp_path, talk, run=run, find=found)


def test_apt_as_root_updates_once_and_says_so(source, tmp_path, talk, said):
    run = Commands(UNKNOWN, OK, OK)
    get_apt(source, tmp_path, talk, run=run, find=found, is_root=lambda: True)
    assert [command[2] for command in run.commands] == ["download", "update", "download"]
    assert run.commands[-1][-1] == "tiny=1.0"
    assert any("running apt-get update once" in line for line in said)


def test_apt_that_stays_ignorant_after_an_update_fails(source, tmp_path, talk):
    run = Commands(UNKNOWN, OK, UNKNOWN)
    with pytest.raises(DataError, match="status 100: E: Unable to locate package tiny"):
        get_apt(source, tmp_path, talk, run=run, find=found, is_root=lambda: True)


def test_apt_without_root_asks_for_the_update(source, tmp_path, talk):
    run = Commands(UNKNOWN)
    with pytest.raises(DataError, match="Run 'sudo apt-get update' once"):
        get_apt(source, tmp_path, talk, run=run, find=found, is_root=lambda: False)
    assert len(run.commands) == 1


# ---- running commands ----------------------------------------------------------------------------


def python(code):
    return [sys.executable, "-c", code]


def test_a_command_runs_in_the_folder_and_tells_status_and_output(tmp_path):
    code = "import os; print(sorted(os.listdir())); open('made', 'w'); raise SystemExit(3)"
    (tmp_path / "there").touch()
    outcome = run_command(python(code), tmp_path, lambda size: None)
    assert outcome == Outcome(status=3, output="['there']\n")
    assert (tmp_path / "made").exists()


def test_a_command_is_watched_while_it_writes(tmp_path):
    sizes = []
    code = "import time; open('f', 'wb').write(b'x' * 1000); time.sleep(0.5)"
    run_command(python(code), tmp_path, sizes.append)
    assert sizes[-1] == 1000


def test_a_command_that_makes_no_progress_is_stopped(tmp_path):
    start = time.monotonic()
    outcome = run_command(
        python("import time; time.sleep(60)"), tmp_path, lambda size: None, stall_limit_s=0.5
    )
    assert time.monotonic() - start < 20
    assert outcome.status != 0
    assert "nothing came for 0.5 s" in outcome.output


# ---- https ---------------------------------------------------------------------------------------


def test_https_writes_every_file(source, tmp_path, talk):
    get_https(source, tmp_path, talk, open_url=lambda url: io.BytesIO(url[-1].encode() * 6))
    assert (tmp_path / "a").read_bytes() == b"aaaaaa"
    assert (tmp_path / "b").read_bytes() == b"bbbbbb"


def test_https_stops_at_the_first_failure_of_a_host(source, tmp_path, talk):
    asked = []

    def refuse(url):
        asked.append(url)
        raise urllib.error.URLError("no such host")

    with pytest.raises(DataError, match=r"https://host\.invalid/a: no such host") as caught:
        get_https(source, tmp_path, talk, open_url=refuse)
    assert caught.value.code == "data-unreachable"
    assert len(asked) == 1


def test_https_stops_reading_what_is_longer_than_pinned(source, tmp_path, talk):
    class Endless:
        def read(self, size):
            return b"x" * size

        def close(self):
            pass

    get_https(source, tmp_path, talk, open_url=lambda url: Endless())
    assert 6 < (tmp_path / "a").stat().st_size <= 1 << 19


def test_a_name_look_up_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **options: time.sleep(3) or [])
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.3 s"):
        open_https("https://host.invalid/a", limit_s=0.3)
    assert time.monotonic() - start < 2


def test_a_failed_name_look_up_ends_at_once(monkeypatch):
    def fail(*args, **options):
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", fail)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    start = time.monotonic()
    with pytest.raises(urllib.error.URLError, match="Name or service not known"):
        open_https("https://host.invalid/a", limit_s=30.0)
    assert time.monotonic() - start < 5


def test_an_answer_in_time_is_the_stream(monkeypatch):
    stream = io.BytesIO(b"bytes")
    monkeypatch.setattr("urllib.request.OpenerDirector.open", lambda opener, request, timeout: stream)
    assert open_https("https://host.invalid/a") is stream


def test_an_answer_that_comes_too_late_is_closed(monkeypatch):
    stream = io.BytesIO(b"bytes")
    monkeypatch.setattr(
        "urllib.request.OpenerDirector.open", lambda opener, request, timeout: time.sleep(0.3) or stream
    )
    with pytest.raises(TimeoutError):
        open_https("https://host.invalid/a", limit_s=0.05)
    deadline = time.monotonic() + 10
    while not stream.closed and time.monotonic() < deadline:
        time.sleep(0.02)
    assert stream.closed


def test_only_https_is_opened_or_followed():
    with pytest.raises(urllib.error.URLError, match="only https"):
        open_https("http://host.invalid/a")
    with pytest.raises(urllib.error.URLError, match="redirects away from https"):
        _StayOnHttps().redirect_request(
            urllib.request.Request("https://host.invalid/a"),
            io.BytesIO(),
            302,
            "Found",
            http.client.HTTPMessage(),
            "http://host.invalid/a",
        )
