"""How every command of `spaces-bench` gives its figures: one JSON object, or a table."""

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """`--json`, as the parameter as_json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def show(title: str, figures: dict[str, Any], as_json: bool) -> None:
    """figures: what a measure() gives back."""
    if as_json:
        click.echo(json.dumps(figures))
        return
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in _flat(figures):
        table.add_row(name.replace("_", " "), _text(value))
    Console().print(table)


def _flat(figures: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name} ")
        else:
            yield f"{before}{name}", value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
