"""What the owner and the moderators of a server do, as a group of commands: for a person with that
role (`spaces moderate`), and for whoever has the server's operator key (`spaces-server admin`)."""

import functools
from pathlib import Path
from typing import Any

import click

from protocol import frames
from protocol.frames import Access, Account, Outcome, ReportInfo
from protocol.text import shown
from spaces_client import words
from spaces_client.commands.common import (
    U32,
    Decorator,
    SpaceIdType,
    TextType,
    WordType,
    Work,
    list_options,
    person_argument,
    show_list,
)
from spaces_client.commands.finding import live_row
from spaces_client.commands.recording import write_recording
from spaces_client.session import Session

reason_type = TextType(frames.MAX_REPORT_CHARS, lines=True)
report_argument = click.argument("report", type=U32)
with_invited_option = click.option(
    "--with-invited",
    is_flag=True,
    help="With a ban: also everyone to whom they gave access, and so on.",
)


def moderation(
    program: str,
    with_session: Decorator,
    *,
    about: str,
    evidence_too: bool,
) -> click.Group:
    """program: how the group is called, e.g. `spaces moderate`.  with_session: makes a command of
    a coroutine function, and gives it a session with the right to do these things.  evidence_too:
    its key can be one to which evidence is sealed; the operator's is none."""
    group = click.Group(program.split()[-1], help=about)
    for work, example in (*_COMMANDS, *[_EVIDENCE] * evidence_too):
        name = work.__name__.strip("_").replace("_", "-")
        epilog = f"\b\n{program} {name} {example}"
        group.add_command(click.command(name, epilog=epilog)(with_session(_own(work))))
    return group


def _own(work: Work) -> Work:
    """The same, with a list of parameters of its own: each group adds others to it."""

    @functools.wraps(work)
    async def own(*arguments: Any, **options: Any) -> None:
        await work(*arguments, **options)

    own.__dict__["__click_params__"] = list(getattr(work, "__click_params__", ()))
    return own


# -- access -------------------------------------------------------------------------------------


@list_options
async def waiting(session: Session, limit: int, as_json: bool) -> None:
    """Show who asked for access, the longest waiting first."""

    def row(one: frames.Waiting) -> tuple[str, str, str]:
        asked = words.local_time(one.asked)
        return words.person(one.name, one.handle), asked, words.one_line(one.note)

    people = session.waiting_list()
    await show_list(people, row, limit=limit, as_json=as_json, nothing="nobody waits")


@person_argument
async def grant(session: Session, person: str) -> None:
    """Give somebody access."""
    await session.grant(person)
    click.echo(f"@{person} has access")


@person_argument
async def revoke(session: Session, person: str) -> None:
    """Take somebody's access back."""
    await session.revoke(person)
    click.echo(f"@{person} has no access any more")


@click.argument("access", type=WordType(Access))
async def _access(session: Session, access: Access) -> None:
    """Open the server to everyone, or limit it to people with access (the owner)."""
    await session.set_access(access)
    click.echo(f"the server is {access.value}")


# -- people -------------------------------------------------------------------------------------


@click.option("--banned", is_flag=True, help="Only those who are banned.")
@click.option("--moderators", is_flag=True, help="Only those who moderate the server.")
@list_options
async def accounts(
    session: Session, banned: bool, moderators: bool, limit: int, as_json: bool
) -> None:
    """Show the accounts of the server."""

    def row(one: Account) -> tuple[str, ...]:
        facts = (
            (one.role.value, one.role.value != "person"),
            ("banned", one.banned),
            ("no access", not one.access),
            (f"invited by @{shown(one.invited_by)}", bool(one.invited_by)),
        )
        known = ", ".join(text for text, holds in facts if holds)
        return words.person(one.name, one.handle), words.local_time(one.since), known

    people = session.accounts(banned=banned, moderators=moderators)
    await show_list(people, row, limit=limit, as_json=as_json, nothing="nobody")


@person_argument
async def appoint(session: Session, person: str) -> None:
    """Make somebody a moderator of the server (the owner)."""
    await session.appoint_moderator(person)
    click.echo(f"@{person} moderates this server")


@person_argument
async def dismiss(session: Session, person: str) -> None:
    """Make a moderator of the server a person like others again."""
    await session.dismiss_moderator(person)
    click.echo(f"@{person} does not moderate this server any more")


@person_argument
@click.option("--reason", type=reason_type, help="They are told.")
@with_invited_option
async def ban(session: Session, person: str, reason: str | None, with_invited: bool) -> None:
    """Keep somebody off the server, with all their devices."""
    await session.ban(person, reason or "", with_invited=with_invited)
    whom = f"@{person} and everyone they invited are" if with_invited else f"@{person} is"
    click.echo(f"{whom} banned")


@person_argument
async def unban(session: Session, person: str) -> None:
    """Let somebody back onto the server."""
    await session.unban(person)
    click.echo(f"@{person} is not banned any more")


# -- reports ------------------------------------------------------------------------------------


@click.option("--closed", is_flag=True, help="Those that have been decided.")
@list_options
async def reports(session: Session, closed: bool, limit: int, as_json: bool) -> None:
    """Show the open reports, the oldest first."""

    def row(one: ReportInfo) -> tuple[str, ...]:
        about = [f"@{shown(one.person)}"] * bool(one.person) + [f"space {one.space}"] * bool(
            one.space
        )
        facts = [words.one_line(one.note)] if one.note else []
        if one.evidence_s:
            until = words.local_time(one.evidence_until)
            facts.append(f"[evidence: {one.evidence_s} s, until {until}]")
        if isinstance(one.outcome, Outcome):
            facts.append(f"[{one.outcome.value}, by @{shown(one.moderator)}]")
        return (
            str(one.id),
            words.local_time(one.at),
            f"@{shown(one.reporter)}:",
            one.category.value,
            " in ".join(about),
            " ".join(facts),
        )

    found = session.reports(closed=closed)
    await show_list(found, row, limit=limit, as_json=as_json, nothing="no reports")


@report_argument
@click.argument("outcome", type=WordType(Outcome))
@click.option("--note", type=reason_type, help="For the one it is about, with a warning or ban.")
@with_invited_option
async def act(
    session: Session, report: int, outcome: Outcome, note: str | None, with_invited: bool
) -> None:
    """Decide on a report; the reporter is told.

    \b
    dismiss   nothing happens
    warn      the person is warned
    remove    the person is removed from the space, or the reported space is ended
    ban       the person, or the host of the reported space, is banned
    """
    await session.act(report, outcome, note or "", with_invited=with_invited)
    click.echo(f"report {report}: {outcome.value}")


@report_argument
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.wav",
    help="[default: report-NUMBER.wav]",
)
async def evidence(session: Session, report: int, output: Path | None) -> None:
    """Write what the reported speaker said last to a WAV file.

    It was sealed for the devices that the owner and the moderators had at the time, and opens on
    those only; nobody gets what they said themselves.
    """
    path = output or Path(f"report-{report}.wav")
    seconds = write_recording(path, await session.evidence(report))
    click.echo(f"wrote {seconds:.1f} s to {path}")


# -- spaces -------------------------------------------------------------------------------------


@list_options
async def spaces(session: Session, limit: int, as_json: bool) -> None:
    """Show the live spaces."""
    await show_list(
        session.spaces(), live_row, limit=limit, as_json=as_json, nothing="no space is live"
    )


@click.argument("space", type=SpaceIdType(), metavar="ID")
@click.option("--reason", type=reason_type, help="Everyone in it is told.")
async def close(session: Session, space: str, reason: str | None) -> None:
    """End a space."""
    await session.close_space(space, reason or "")
    click.echo("the space is over")


_EVIDENCE: tuple[Work, str] = (evidence, "3 --output said.wav")
_COMMANDS: tuple[tuple[Work, str], ...] = (
    (waiting, ""),
    (grant, "ada"),
    (revoke, "ada"),
    (_access, "limited"),
    (accounts, "--banned"),
    (appoint, "ada"),
    (dismiss, "ada"),
    (ban, "eve --reason spam --with-invited"),
    (unban, "eve"),
    (reports, "--closed"),
    (act, "3 warn --note 'be kind'"),
    (spaces, ""),
    (close, "kX3vQm2pT9aB --reason 'against the rules'"),
)
