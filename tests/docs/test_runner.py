"""The runner of pages notices what is wrong with one."""

import pytest

from tests.support.pages import blocks, run_command, run_page


def page(tmp_path, text):
    path = tmp_path / "page.md"
    path.write_text(text, encoding="utf-8")
    return path


def test_blocks_share_names_and_setup_comes_first(tmp_path):
    run_page(
        page(
            tmp_path, "<!-- setup\nx = 2\n-->\n\n```python\ny = x + 1\n```\n\n```python\nassert y == 3\n```\n"
        )
    )


def test_an_error_names_the_pages_own_line(tmp_path):
    with pytest.raises(ZeroDivisionError) as raised:
        run_page(page(tmp_path, "# A page\n\n```python\na = 1\nb = 1 / 0\n```\n"))
    assert raised.traceback[-1].lineno + 1 == 5


def test_a_failing_command_fails_the_page(tmp_path):
    with pytest.raises(AssertionError, match=r"page\.md:2"):
        run_page(page(tmp_path, "```sh\nreticent plan --delta 2\n```\n"))


def test_changes_must_apply(tmp_path):
    text = "<!-- run as: 600 => 6 -->\n```python\nsteps = {}\nassert steps == 6\n```\n"
    run_page(page(tmp_path, text.format(600)))
    with pytest.raises(AssertionError, match="not in the block"):
        list(blocks(page(tmp_path, text.format(700))))


def test_a_block_in_a_tab_loses_its_indent(tmp_path):
    (block,) = blocks(page(tmp_path, '=== "bash"\n\n    ```python\n    if True:\n        a = 1\n    ```\n'))
    assert block.code == "if True:\n    a = 1\n"


@pytest.mark.parametrize(
    "line",
    [
        "torchrun --nproc-per-node 2 -m benchmarks.nonsense",
        "pip install 'reticent[nonsense]'",
        "make nonsense",
        "python -m benchmarks.nonsense",
        "rm -r /",
    ],
)
def test_other_programs_must_name_what_exists(line):
    with pytest.raises(AssertionError):
        run_command(line, "here")
