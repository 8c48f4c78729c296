"""Control frames: every message of the reliable channel, declared once as data.

    base       what all have in common, and the errors
    space      one space: stage, chat, reactions, feed
    people     accounts, devices, following, blocking, access
    finding    lists and schedules of spaces, invitations, messages, posts
    safety     reports, evidence, the server's moderators
    codec      to bytes and back

Requests carry an `id` of the client's choice and get exactly one reply, which repeats it as `re`.
The frame tables of SPEC.md are written from these files.
"""

from protocol.frames.base import *  # noqa: F403 - the package is its parts, under one name
from protocol.frames.codec import *  # noqa: F403
from protocol.frames.finding import *  # noqa: F403
from protocol.frames.people import *  # noqa: F403
from protocol.frames.safety import *  # noqa: F403
from protocol.frames.space import *  # noqa: F403
