"""The README names every command, and its library example runs, word for word."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from spaces_client.cli import main
from spaces_client.live import host
from spaces_client.slash import BY_NAME
from spaces_client.wav import read_blocks
from spaces_server.cli import main as server
from tests.integration.test_live import ADA, registered, running_server

README = Path(__file__).resolve().parents[2] / "README.md"


def _names(group: click.Group) -> Iterator[str]:
    for name, command in group.commands.items():
        if not isinstance(command, click.Group):
            yield name
        elif name not in ("moderate", "admin"):  # which the README names, and no more
            yield from _names(command)


def test_every_command_is_in_the_readme() -> None:
    text = README.read_text()
    words = set(re.findall(r"[a-z-]+", " ".join(re.findall(r"`([^`\n]+)`", text))))
    assert [name for name in (*_names(main), *_names(server)) if name not in words] == []
    slashes = set(re.findall(r"`/([a-z]+)", text))
    assert slashes == set(BY_NAME)


async def test_the_example_of_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    lines = [line for line in found[1].splitlines() if line.strip()]
    assert len(lines) <= 15
    names: dict[str, Any] = {}
    exec(found[1], names)
    monkeypatch.chdir(tmp_path)
    async with running_server(tmp_path) as (_, link):
        await registered(link, ada=ADA)
        async with host(link, title="Morning", key=ADA) as ada:
            await names["listen"](str(ada.link), seconds=0.5)
    assert "Morning: ['Ada'] on stage" in capsys.readouterr().out
    assert 15 <= len(list(read_blocks(tmp_path / "heard.wav"))) <= 60
