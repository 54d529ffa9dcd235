"""What the README and the banner print is run, as it is printed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


class Served:
    """A real `tropilla serve`, and what it printed."""

    def __init__(self, base: str, banner: str) -> None:
        self.base = base
        self.banner = banner

    def here(self, snippet: str) -> str:
        """The snippet, asking this gateway instead of the default port."""
        return snippet.replace("http://127.0.0.1:8081", self.base)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    command = [sys.executable, "-m", "tropilla", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if "Ctrl-C" in line:
                    break
            banner = "".join(lines)
            found = re.search(r"listens on (http://[\d.:]+)/v1", banner)
            assert found, banner
            yield Served(found[1], banner)
        finally:
            process.terminate()
            process.stdout.close()


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on this machine")
def test_the_curl_line_of_the_readme_works(served: Served) -> None:
    (line,) = [text for text in snippets("sh") if text.startswith("curl")]
    answer = run(["sh", "-c", served.here(line)])
    assert '"finish_reason"' in answer
    assert '"model":"tropilla-tiny"' in answer


def test_the_python_of_the_readme_works(served: Served) -> None:
    (code,) = snippets("python")
    assert run([sys.executable, "-c", served.here(code)]).strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on this machine")
def test_the_curl_line_of_the_banner_works(served: Served) -> None:
    found = re.search(r"^  (curl .*?)\n\n", served.banner, re.DOTALL | re.MULTILINE)
    assert found
    assert '"finish_reason"' in run(["sh", "-c", found[1]])


def test_the_python_of_the_banner_works(served: Served) -> None:
    found = re.search(r"^(  from openai.*?)\n\n", served.banner, re.DOTALL | re.MULTILINE)
    assert found
    code = "\n".join(line[2:] for line in found[1].splitlines())
    assert run([sys.executable, "-c", code]).strip()


def test_the_readme_names_only_commands_that_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)", README))
    assert named <= targets


def test_the_readme_links_to_files_that_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target


def test_health_is_ok_once_the_engine_is_ready(served: Served) -> None:
    run([sys.executable, "-c", served.here(snippets("python")[0])])
    with urllib.request.urlopen(f"{served.base}/health", timeout=5) as answer:
        assert answer.read() == b'{"status":"ok"}'


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on this machine")
def test_in_front_of_servers_the_lines_to_copy_name_a_model_that_they_have(
    served: Served,
) -> None:
    command = [sys.executable, "-m", "tropilla", "serve", "--port", "0", "--upstream", served.base]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = ""
            while "flush=True" not in told:
                line = process.stdout.readline()
                assert line, told
                told += line
        finally:
            # It serves until here; what it printed is all that is needed of it.
            found = re.search(r"^  (curl .*?)\n\n", told, re.DOTALL | re.MULTILINE)
            answer = run(["sh", "-c", found[1]]) if found else told
            process.terminate()
    assert '"finish_reason"' in answer
    assert '"model":"tropilla-tiny"' in answer
