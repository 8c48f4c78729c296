"""The real store, on a database in memory.  It confirms at once, unless it is held back."""

import sqlite3
from functools import cache

from protocol.connection import MS
from spaces_server.node import Node
from spaces_server.records import Commit, Loaded, StoreReply, StoreRequest
from spaces_server.store.database import Database

CONFIRM_NS = 2 * MS  # about what a disk takes


def _driver(database: Database) -> sqlite3.Connection:
    assert database._connection is not None
    driver = database._connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


@cache
def _tables() -> Database:
    """What every shelf begins as: to migrate each one would take longer than most tests."""
    database = Database("sqlite://")
    database.upgrade()
    return database


class Shelf:
    """held: nothing is confirmed, or stored, from now on until it is false again."""

    def __init__(self) -> None:
        self.database = Database("sqlite://")
        _driver(_tables()).backup(_driver(self.database))
        self.commits = 0
        self.held = False
        self._waiting: list[StoreRequest] = []

    def load(self) -> Loaded:
        """For a server that starts: what waits is lost with the one before."""
        self._waiting = []
        return self.database.load()

    def answer(self, requests: list[StoreRequest]) -> list[StoreReply]:
        self._waiting += requests
        if self.held:
            return []
        replies: list[StoreReply] = []
        for request in self._waiting:
            if isinstance(request, Commit):
                self.commits += 1
                self.database.commit([request])
                replies.append(StoreReply(request.ticket))
            else:
                rows = self.database.fetch(request.query)
                replies.append(StoreReply(request.ticket, rows))
        self._waiting = []
        return replies

    def serve(self, node: Node, now_ns: int) -> bool:
        """Does all that the node wants stored; -> whether there was anything."""
        served = False
        while replies := self.answer(node.to_store()):
            served = True
            for reply in replies:
                node.receive_stored(reply, now_ns)
        return served

    def dump(self) -> str:
        """All that is stored, as SQL."""
        return "\n".join(_driver(self.database).iterdump())

    def close(self) -> None:
        self.database.close()
