"""The plan explorer: the library's own numbers, on this machine alone."""

import http.client
import json
import threading
import urllib.parse

import pytest
from click.testing import CliRunner

from reticent.cli.plan import command
from reticent.clipping import FlatClipping
from reticent.errors import ConfigError
from reticent.plan import Plan
from reticent.records import Budget
from reticent.report import Explorer, explore, starting_values
from reticent.sample import PoissonSampler

# All examples in each step: the exact curve of the Gaussian, which takes no time.
SMALL = {"epsilon": 3, "delta": 1e-3, "num_examples": 100, "expected_batch_size": 100, "num_steps": 3}


@pytest.fixture
def explorer():
    server = Explorer(starting_values(SMALL))
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    server.close()
    thread.join(timeout=10)


def get(explorer, path, *, method="GET", host=None):
    url = urllib.parse.urlsplit(explorer.url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
    connection.request(method, path, headers={"Host": host or url.netloc})
    reply = connection.getresponse()
    body = reply.read().decode()
    connection.close()
    return reply.status, dict(reply.getheaders()), body


def test_its_numbers_are_the_plans():
    asked = {**SMALL, "epsilon": 1, "num_examples": 1000, "num_steps": 200}
    told = {name: value for name, value, _ in explore(asked).rows}
    plan = Plan.calibrate(
        budget=Budget(epsilon=1, delta=1e-3),
        sampler=PoissonSampler(num_examples=1000, expected_batch_size=100),
        num_steps=200,
        clipping=FlatClipping(max_norm=1.0),
    )
    assert float(told["noise multiplier σ"]) == plan.noise_multiplier
    assert float(told["signal to noise B/σ"]) == pytest.approx(100 / plan.noise_multiplier, rel=1e-3)
    report = plan.epsilon()
    for name, epsilon in (("ε by PLD", report.epsilon_pld), ("ε by RDP", report.epsilon_rdp)):
        assert epsilon <= float(told[name]) <= epsilon * 1.001
    assert told["examples processed"] == "20,000"


def test_its_command_gives_the_same_noise():
    found = explore(SMALL)
    shown = CliRunner().invoke(command, [*found.command.split()[2:], "--json"], catch_exceptions=False)
    assert f"{json.loads(shown.output)['noise_multiplier']:.6g}" == found.rows[0][1]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"delta": "x"}, "δ must be a number, and is 'x'"),
        ({"epsilon": "inf"}, "must be a finite number"),
        ({"num_steps": ""}, "steps must be a number"),
        ({"num_steps": 1e9, "epsilon": 0}, "ε must be from 0.05 to 50.*; steps must be from 1 to 1e\\+06"),
        ({"num_examples": 100.5}, "N must be a whole number"),
        ({"expected_batch_size": 101}, "B must not be larger than the number N of"),
    ],
)
def test_what_cannot_be_is_said_in_words(changed, problem):
    with pytest.raises(ConfigError, match=problem):
        explore({**SMALL, **changed})


def test_the_page_and_its_numbers_are_under_the_token_only(explorer):
    token = urllib.parse.urlsplit(explorer.url).path
    query = urllib.parse.urlencode(SMALL)
    status, headers, page = get(explorer, token)
    assert status == 200 and 'value="100"' in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "http://" not in page and "https://" not in page and "//" not in page.replace("// ", "")
    status, _, body = get(explorer, f"{token}plan?{query}")
    assert status == 200 and json.loads(body) == json.loads(json.dumps(explore(SMALL).to_dict()))
    _, _, body = get(explorer, f"{token}plan?{query.replace('size=100', 'size=101')}")
    problem = "expected batch size B must not be larger than the number N of training examples."
    assert json.loads(body) == {"error": problem}
    for path, options in (
        ("/", {}),
        (f"/{'x' * (len(token) - 2)}/", {}),
        (f"/{'x' * (len(token) - 2)}/plan?{query}", {}),
        (token, {"host": "elsewhere.example"}),
    ):
        assert get(explorer, path, **options)[0] == 403
    assert get(explorer, f"{token}etc/passwd")[0] == 404
    assert get(explorer, token, method="POST")[0] == 501
    assert explorer.answer(f"127.0.0.1:{explorer._server.server_port}", "http://[::1")[0] == 400


def test_of_requests_that_wait_only_the_newest_is_computed(explorer):
    token, answers = urllib.parse.urlsplit(explorer.url).path, {}

    def ask(steps):
        query = urllib.parse.urlencode({**SMALL, "num_steps": steps})
        answers[steps] = json.loads(get(explorer, f"{token}plan?{query}")[2])

    with explorer._computing:  # somebody else's numbers take long
        threads = []
        for steps in (1, 2):
            threads.append(threading.Thread(target=ask, args=(steps,)))
            threads[-1].start()
            while explorer._newest < steps:
                pass
    for thread in threads:
        thread.join(timeout=60)
    assert answers[1] == {"superseded": True}
    assert answers[2]["values"]["num_steps"] == 2


def test_options_that_it_would_not_read_are_refused():
    for options in (["--json"], ["digits"], ["--noise-multiplier", "1"], ["--sampler", "poisson"]):
        with pytest.raises(ConfigError, match=r"explorer does not read .*\[plan-explorer\]"):
            CliRunner().invoke(command, ["--open", *options], catch_exceptions=False)
    with pytest.raises(ConfigError, match=r"ε must be from .*\[plan-explorer\]"):
        CliRunner().invoke(command, ["--open", "--epsilon", "900"], catch_exceptions=False)
    assert "--open only" in CliRunner().invoke(command, ["--no-browser"]).output
