"""The layers, as the imports have them."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("protocol", "spaces_server", "spaces_client", "bench", "tests")
SHELL = (
    "time", "datetime", "random", "secrets", "socket", "asyncio", "threading", "concurrent", "uuid",
)  # fmt: skip


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


@cache
def imports(module: str) -> frozenset[str]:
    """Whatever the module imports, wherever in it; `from a import b` counts as a and a.b."""
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def offences(where: list[str], *forbidden: str, but: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{module} imports {name}"
        for module in where
        for name in sorted(imports(module))
        if within(name, *forbidden) and not within(name, *but)
    ]


def test_the_reader_of_imports_sees_them() -> None:
    seen = imports("spaces_server.node")
    assert {
        "spaces_server.policy.house",
        "spaces_server.mixer.mixer.Mixer",
        "protocol.frames",
    } <= seen
    assert "asyncio" in imports("spaces_server.server")
    assert offences(["spaces_server.node"], "spaces_server.policy.house")


def test_the_protocol_imports_nothing_of_ours() -> None:
    assert offences(modules("protocol"), *OURS, but=("protocol",)) == []


MIXER = modules("spaces_server/mixer")
STORE = modules("spaces_server/store")
NET = modules("spaces_server/net")
RECORDS = "spaces_server.records"
POLICY = [*modules("spaces_server/policy"), RECORDS]
PARTS = [f"spaces_server.{name}" for name in ("node", "endpoint", "governor", "ledger", "recorder")]
SHELL_OF_THE_SERVER = [
    "spaces_server",
    *(
        f"spaces_server.{name}"
        for name in (
            "__main__",
            "admin",
            "child",
            "cli",
            "config",
            "demo",
            "gauge",
            "server",
            "story",
        )
    ),
]
CLIENTS_OF_THE_SERVER = ["spaces_server.admin", "spaces_server.story"]


def test_every_module_of_the_server_has_its_place() -> None:
    placed = {*POLICY, *MIXER, *STORE, *NET, *PARTS, *SHELL_OF_THE_SERVER}
    assert set(modules("spaces_server")) == placed


def test_policy_knows_policy_and_the_protocol_at_most() -> None:
    assert offences(POLICY, *OURS, but=(*POLICY, "protocol")) == []


@pytest.mark.parametrize("module", POLICY)
def test_policy_knows_nothing_of_packets_connections_and_samples(module: str) -> None:
    below = ("connection", "jitter", "noise", "playout", "reliable", "replay", "sealing")
    of_time = ("protocol.connection", "protocol.connection.MS")  # a unit
    names = [name for name in imports(module) if name not in of_time]
    assert not [n for n in names if within(n, *(f"protocol.{part}" for part in below))]
    assert offences([module], "numpy", "sqlalchemy", "alembic", "cryptography") == []


def test_the_mixer_knows_the_protocol_and_itself() -> None:
    assert offences(MIXER, *OURS, but=("spaces_server.mixer", "protocol")) == []


def test_the_store_knows_records_and_the_protocol() -> None:
    allowed = ("spaces_server.store", "spaces_server.records", "protocol")
    assert offences(STORE, *OURS, but=allowed) == []


def test_only_the_store_knows_sql() -> None:
    others = [module for place in OURS[:3] for module in modules(place) if module not in STORE]
    assert offences(others, "sqlalchemy", "alembic", "sqlite3", "psycopg") == []
    assert offences(STORE, "sqlalchemy"), "the store does"


def test_only_the_server_s_shell_opens_a_store() -> None:
    inner = [*POLICY, *MIXER, *PARTS]
    assert offences(inner, "spaces_server.store", "spaces_server.net") == []


def test_the_network_knows_the_protocol_at_most() -> None:
    allowed = ("spaces_server.net", "protocol")
    assert offences(NET, *OURS, but=allowed) == []


def test_the_client_knows_the_protocol_only() -> None:
    assert offences(modules("spaces_client"), *OURS, but=("spaces_client", "protocol")) == []


def test_the_server_does_not_know_the_client_but_where_it_is_one() -> None:
    others = [m for m in modules("spaces_server") if m not in CLIENTS_OF_THE_SERVER]
    assert offences(others, "spaces_client") == []
    assert offences(modules("spaces_server"), "tests", "bench") == []


CORE = [
    *modules("protocol"),
    *MIXER,
    *POLICY,
    *PARTS,
    *(f"spaces_client.{name}" for name in ("client", "view", "talker")),
]


@pytest.mark.parametrize("module", CORE)
def test_the_core_has_no_clock_chance_sockets_or_threads(module: str) -> None:
    assert offences([module], *SHELL) == []
