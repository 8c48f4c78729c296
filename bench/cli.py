"""The command `spaces-bench`: each of its commands is a module of its own, with the figures of its
measure() as one JSON object or as a table."""

import click

from bench import capacity, floor, joins, latency, report, spaces, tick
from bench.jitter import run as jitter
from bench.peers import run as peers
from spaces_server import AGENT


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(AGENT, message="%(version)s")
def main() -> None:
    """Measure what audio rooms cost on this machine.

    A real server runs on one core and real clients on another one, both before other programs where
    the system permits: let the machine have nothing else to do meanwhile.
    """


main.add_command(floor.command)
main.add_command(capacity.command)
main.add_command(spaces.command)
main.add_command(joins.command)
main.add_command(latency.command, "latency")
main.add_command(jitter.command)
main.add_command(tick.command)
main.add_command(peers.command)
main.add_command(report.command)

if __name__ == "__main__":
    main()
