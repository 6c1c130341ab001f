"""The rights of each user that `deploy/valkey/cache.acl` describes, given to users of a test's server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aicache_tasks.testing import EmbeddedServer

LOGIN = {"username": "tests", "password": "tests"}
ACL = Path(__file__).parent.parent / "deploy" / "valkey" / "cache.acl"
EVERY_NAMESPACE = "~{*"
BESIDE_THE_CACHE = "(~[^{]* &* +@all -@dangerous -@admin -scan -dbsize -time -randomkey +config|get +psync +replconf)"
"""What a broker, a result backend and a test's own keys need on the same server: nothing of the cache's keys. A command
without a key is the cache's too if Celery needs it, such as MULTI, PUBLISH and SCRIPT LOAD; a store that is opened at
`url_for_a_store` has none of these."""


def lines() -> dict[str, list[str]]:
    """Return the rules of each user, by name."""
    users = [line.split()[1:] for line in ACL.read_text().splitlines() if line.startswith("user ")]
    return {name: rules for name, *rules in users}


def rights(user: str) -> list[str]:
    """Return what *user* may: patterns of keys and commands."""
    return [rule for rule in lines()[user] if rule[0] in "~+-"]


def url_for_a_store(server: EmbeddedServer) -> str:
    """Return *server*'s URL with a login that may use any key, and no command but those of ``aicache-admin``."""
    with server.client() as client:
        add_user(client, "store", "aicache-admin")
        client.execute_command("ACL", "SETUSER", "store", "~*")
    return f"redis://store:any@127.0.0.1:{server.port}/0"


def add_user(client: Any, name: str, user: str, password: str = "any") -> None:
    """Make *name* on a server, with the rights of *user*."""
    client.execute_command("ACL", "SETUSER", name, "reset", "on", f">{password}", *rights(user))


def restrict_new_servers() -> None:
    """From now on whoever does not log in at a test's Valkey has the rights of ``aicache-admin`` over the cache's keys,
    of any namespace, and no others over them; the tests' own clients log in as ``tests``, who may do everything.

    That is the URL that the code under test gets, in processes of its own too. Redis 6.2 stays as it is: it has no
    selectors, by which the default user keeps what brokers and result backends need.
    """
    start, client = EmbeddedServer.start, EmbeddedServer.client

    def started(server: EmbeddedServer) -> EmbeddedServer:
        start(server)
        with client(server) as plain:  # who does not log in may do everything until this is done
            _restrict(plain, server)
        return server

    def logged_in(server: EmbeddedServer, **options: Any) -> Any:
        return client(server, **(options | LOGIN if knows_selectors(server) else options))

    EmbeddedServer.start, EmbeddedServer.client = started, logged_in  # type: ignore[method-assign]


def knows_selectors(server: EmbeddedServer) -> bool:
    return server.binary.name == "valkey-server"


def _restrict(plain: Any, server: EmbeddedServer) -> None:
    if not knows_selectors(server):
        return
    # A password in the URL goes before one that is given beside it.
    words = [f">{word}" for word in (LOGIN["password"], server._config.get("requirepass")) if word]
    plain.execute_command("ACL", "SETUSER", LOGIN["username"], "reset", "on", *words, "~*", "&*", "+@all")
    commands = [rule for rule in rights("aicache-admin") if not rule.startswith("~")]
    default = ("default", "resetkeys", "resetchannels", EVERY_NAMESPACE, *commands, BESIDE_THE_CACHE)
    plain.execute_command("ACL", "SETUSER", *default)
