"""The README's library example runs, word for word."""

import re
from pathlib import Path
from typing import Any

import pytest

from spaces_client.live import host
from spaces_client.wav import read_blocks
from tests.integration.test_live import ADA, registered, running_server

README = Path(__file__).resolve().parents[2] / "README.md"


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
