"""The layers, as the imports have them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("protocol", "spaces_server", "spaces_client", "bench", "tests")
SHELL = ("time", "random", "secrets", "socket", "asyncio", "threading")


def modules(*places: str) -> list[str]:
    """The names of all modules in packages, or of single modules."""
    found = []
    for place in places:
        path = ROOT / place.replace(".", "/")
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        for file in files:
            parts = file.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    assert found
    return found


def imports(module: str) -> Iterator[str]:
    """Whatever the module imports, wherever in it; `from a import b` counts as a and a.b."""
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def offences(where: list[str], *forbidden: str, but: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{module} imports {name}"
        for module in where
        for name in imports(module)
        if within(name, *forbidden) and not within(name, *but)
    ]


def test_the_reader_of_imports_sees_them() -> None:
    seen = set(imports("spaces_server.node"))
    assert {"spaces_server.space", "spaces_server.mixer.mixer.Mixer", "protocol.frames"} <= seen
    assert "asyncio" in set(imports("spaces_server.server"))
    assert offences(["spaces_server.node"], "spaces_server.space")


def test_the_protocol_imports_nothing_of_ours() -> None:
    assert offences(modules("protocol"), *OURS, but=("protocol",)) == []


def test_policy_and_mixer_do_not_know_each_other() -> None:
    policy = ["spaces_server.space", "spaces_server.feed"]
    assert offences(policy, "spaces_server", but=("spaces_server.feed",)) == []
    assert offences(modules("spaces_server/mixer"), *policy) == []
    mixer = ("spaces_server.mixer", "spaces_server.mixer.egress")
    assert offences(modules("spaces_server/mixer"), "spaces_server", but=mixer) == []


def test_the_network_knows_the_protocol_at_most() -> None:
    allowed = ("spaces_server.net", "protocol")
    assert offences(modules("spaces_server/net"), *OURS, but=allowed) == []


def test_the_client_knows_the_protocol_only() -> None:
    assert offences(modules("spaces_client"), *OURS, but=("spaces_client", "protocol")) == []


def test_the_server_does_not_know_the_client() -> None:
    assert offences(modules("spaces_server"), "spaces_client", "tests", "bench") == []


CORE = [
    *modules("protocol"),
    *modules("spaces_server/mixer"),
    *(f"spaces_server.{name}" for name in ("endpoint", "space", "feed", "node")),
    *(f"spaces_client.{name}" for name in ("client", "view", "talker")),
]


@pytest.mark.parametrize("module", CORE)
def test_the_core_has_no_clock_chance_sockets_or_threads(module: str) -> None:
    assert offences([module], *SHELL) == []
