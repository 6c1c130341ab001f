"""
Do workers and this process speak of the same keys?

In: what each worker answers to ``inspect cache_policy``, and what this process would.   Out: findings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from aicache_tasks.reports.doctor.case import UNREADABLE, Case, Finding, Level
from aicache_tasks.reports.doctor.stability import RAISES
from aicache_tasks.reports.wording import label, plural

KEYED: Final = ("operation", "version", "ignore", "text_arg", "question_arg")
"""What of a policy decides about keys, and is told as it is."""
DIGESTED: Final = ("vary", "tenant")
"""The same, told as a digest that `aicache_secret` keys."""
ITS_OWN: Final = ("namespace", "url", "disabled", "digest")
"""What of a worker decides about all its keys, and about where they are."""
DEFAULT_HOST, DEFAULT_PORT = "localhost", 6379
SOCKETS: Final = ("unix", "redis+socket")
"""Schemes of URLs whose path is the server's, and not the database."""
MOST: Final = 5
"""Workers, and tasks of one, that are told of one by one."""
MEND: Final = "Mend the settings there, or the task's cache=."
REFUSED: Final = ("Authentication", "AccessRefused", "NoPermission", "ResponseError")
"""In the names of what brokers' clients raise for a login, or for a right that it has not."""
Answer = Mapping[str, Any]


def answers(case: Case) -> Iterator[Finding]:
    """Does every worker answer?"""
    replies = case.replies
    if replies.fault:
        fix = "Is the broker up, and broker_url right, with its login? Workers could not be compared."
        did = "refuses" if any(word in replies.fault for word in REFUSED) else "does not answer"
        yield Finding("workers", "warn", f"the broker {did}: {label(replies.fault)}", fix)
        return
    if not replies.each:
        fix = "Start one; what it makes of policies could not be compared."
        yield Finding("workers", "warn", "no worker answered", fix)
        return
    mute = {name: str(answer.get("error", UNREADABLE)) for name, answer in replies.each.items() if not _tells(answer)}
    fix = "Has its application called install(app), and is its version this one?"
    for name, error in sorted(mute.items())[:MOST]:
        yield Finding("workers", "fail", f"{label(name)} says: {label(error, 200)}", fix)
    if len(mute) > MOST:
        yield Finding("workers", "fail", f"no policies from {plural(len(mute) - MOST, 'more worker')} either", fix)
    if not mute:
        yield Finding("workers", "ok", f"{len(replies.each)} answered")


def versions(case: Case) -> Iterator[Finding]:
    """Do all run the same code?"""
    if not _each(case):
        return
    mine = case.mine["version"]
    others = {name: answer.get("version") for name, answer in _each(case).items() if answer.get("version") != mine}
    bodies = sorted({task for answer in _each(case).values() for task in _differing(case, answer, "body")})
    fix = "Finish the deploy: restart what runs the older code."
    if others:
        named = _first([f"{label(name)} {label(str(version), 20)}" for name, version in sorted(others.items())])
        yield Finding("versions", "warn", f"aicache-tasks is {mine} here, elsewhere not: {named}", fix)
    if bodies:
        yield Finding("versions", "warn", f"workers have other bodies of {_listed(bodies)} than this process", fix)
    if not others and not bodies:
        yield Finding("versions", "ok", f"aicache-tasks {mine} and the same bodies everywhere")


def policies(case: Case) -> Iterator[Finding]:
    """Would this process find what workers store?"""
    each = {name: list(_policies(case, label(name), answer)) for name, answer in sorted(_each(case).items())}
    wrong = [name for name, found in each.items() if found]
    for name in wrong[:MOST]:
        yield from each[name]
    if more := wrong[MOST:]:
        level: Level = "fail" if any(one.level == "fail" for name in more for one in each[name]) else "warn"
        fix = "Mend those above first, and look again."
        yield Finding("policies", level, f"the like of {plural(len(more), 'more worker')}: {_listed(more)}", fix)
    if each and not wrong:
        yield Finding("policies", "ok", "workers resolve policies and vary= as this process does")


def _policies(case: Case, worker: str, answer: Answer) -> Iterator[Finding]:
    """Yield in what *worker* differs from this process."""
    if _has_another("namespace", case, answer):
        theirs, mine = label(str(answer["namespace"])), case.mine["namespace"]
        fix = "Give both the same aicache_namespace."
        yield Finding("policies", "fail", f"{worker} has the namespace {theirs}, this process {mine}", fix)
    if _has_another("url", case, answer) and _where(_place(answer)) != _where(_place(case.mine)):
        fix = "If these are not two names of one server, give both the same aicache_url: they share no answer."
        said = f"{worker} has the cache at {_place(answer)}, this process at {_place(case.mine)}"
        yield Finding("policies", "warn", said, fix)
    if _has_another("disabled", case, answer):
        fix = "Unset AICACHE_DISABLED, or aicache_disabled, where it is not meant."
        yield Finding("policies", "warn", f"the cache is switched off in one of {worker} and this process", fix)
    yield from _keys(case, worker, answer)


def _keys(case: Case, worker: str, answer: Answer) -> Iterator[Finding]:
    """Yield in what the keys of *worker* differ from this process's, or that it cannot be told."""
    yield from _uncompared(case, worker, answer["tasks"])
    if untold := sorted(_untold(case, answer)):
        fix = "Finish the deploy: of these nothing was compared, nor of vary= and tenant= without the digest."
        yield Finding("policies", "warn", f"{worker} does not tell {', '.join(untold)}", fix)
    if _has_another("digest", case, answer):
        fix = "Give both the same, as settings or in the environment: neither finds what the other stores."
        said = f"{worker} has another aicache_secret or aicache_hash than this process"
        yield Finding("policies", "fail", said, fix)
    elif "digest" in answer:
        yield from _otherwise_resolved(case, worker, answer)
    for field in KEYED:
        if differing := _differing(case, answer, field):
            fix = "Finish the deploy: until then both keep answers of their own."
            yield Finding("policies", "fail", f"{worker} has another {field} of {_listed(differing)}", fix)


def _has_another(field: str, case: Case, answer: Answer) -> bool:
    return field in answer and answer[field] != case.mine[field]


def _untold(case: Case, answer: Answer) -> set[str]:
    """Return what this process would tell and *answer* does not, of itself and of the tasks that both have."""
    theirs = [answer["tasks"][name] for name in _both(case, answer)]
    of_tasks = {field for told in theirs for field in (*KEYED, *DIGESTED) if field not in told}
    return {field for field in ITS_OWN if field not in answer} | of_tasks


def _otherwise_resolved(case: Case, worker: str, answer: Answer) -> Iterator[Finding]:
    for field in DIGESTED:
        differing = _differing(case, answer, field)
        raising = [name for name in differing if _raises(case.mine, name, field) or _raises(answer, name, field)]
        check = "vary" if field == "vary" else "policies"
        if resolved := [name for name in differing if name not in raising]:
            fix = "Give both the same environment: what this process looks up or invalidates, workers never read."
            said = f"{worker} resolves {field}= of {_listed(resolved)} otherwise than this process"
            yield Finding(check, "fail", said, fix)
        if raising:
            fix = "Give both the same environment, unless it needs what only a call has, such as a ContextVar."
            said = f"{field}= of {_listed(raising)} raises in one of {worker} and this process, outside of a call"
            yield Finding(check, "warn", said, fix)


def _raises(answer: Answer, task: str, field: str) -> bool:
    return str(answer["tasks"][task].get(field)).startswith(RAISES)


def _place(answer: Answer) -> str:
    """Return where the cache is, whoever logs in there.

    >>> _place({"url": "redis://ann:********@cache/0?client_name=web@host"})
    'redis://cache/0?client_name=web@host'
    """
    url, mark, options = str(answer.get("url") or "no server").partition("?")
    scheme, slashes, rest = url.partition("//")
    return label(scheme + slashes + rest.rpartition("@")[2] + mark + options, 200)


def _where(place: str) -> tuple[str, int, str] | str:
    """Return host, port and database, or socket and database, of a URL; another text as it is.

    >>> _where("redis://cache") == _where("redis://Cache:6379/0?client_name=web") == ("cache", 6379, "0")
    True
    >>> _where("redis:///1"), _where("unix:///run/s?db=1")
    (('localhost', 6379, '1'), ('/run/s', 6379, '1'))
    """
    try:
        parts = urlsplit(place)
        port, given = parts.port or DEFAULT_PORT, dict(parse_qsl(parts.query))
    except ValueError:
        return place
    if not parts.scheme or parts.scheme == "memory":
        return place
    is_socket = parts.scheme in SOCKETS
    host = parts.path if is_socket else parts.hostname or DEFAULT_HOST
    base = given.get("virtual_host", given.get("db", "" if is_socket else parts.path)).strip("/")
    return host, port, base or "0"


def _uncompared(case: Case, worker: str, tasks: Mapping[str, Any]) -> Iterator[Finding]:
    """Say of what nothing could be compared, which is not to pass for agreement."""
    shared = sorted(case.mine["tasks"].keys() & tasks.keys())
    if not shared and (tasks or case.mine["tasks"]):
        fix = "Has it the same application? Has it and this process imported the modules with its tasks?"
        yield Finding("policies", "warn", f"{worker} has no task that this process has: nothing was compared", fix)
    unreadable = [name for name in shared if not isinstance(tasks[name], Mapping)]
    if unreadable:
        fix = "Is its version this one?"
        yield Finding("policies", "warn", f"{worker} gives an answer of {_listed(unreadable)} that is none", fix)
    faults = [name for name in shared if _is_fault(tasks[name])]
    for name in faults[:MOST]:
        said = f"{worker} says of {label(name)}: {label(str(tasks[name]['error']), 200)}"
        yield Finding("policies", "fail", said, MEND)
    if len(faults) > MOST:
        yield Finding("policies", "fail", f"{worker} says so of {plural(len(faults) - MOST, 'more task')}", MEND)


def _is_fault(policy: Any) -> bool:
    return isinstance(policy, Mapping) and "error" in policy


def _tells(answer: Answer) -> bool:
    return isinstance(answer.get("tasks"), Mapping)


def _each(case: Case) -> dict[str, Answer]:
    """Return the answers that have policies."""
    return {name: answer for name, answer in case.replies.each.items() if _tells(answer)}


def _both(case: Case, answer: Answer) -> list[str]:
    """Return the tasks of which *answer* tells something that this process can compare."""
    mine, theirs = case.mine["tasks"], answer["tasks"]
    told = [name for name in sorted(mine) if isinstance(theirs.get(name), Mapping)]
    return [name for name in told if not _is_fault(mine[name]) and not _is_fault(theirs[name])]


def _differing(case: Case, answer: Answer, field: str) -> list[str]:
    """Return the tasks that both have, and of which *answer* has another *field* than this process."""
    mine, theirs = case.mine["tasks"], answer["tasks"]
    told = [name for name in _both(case, answer) if field in theirs[name]]
    return [name for name in told if theirs[name][field] != mine[name][field]]


def _listed(names: list[str]) -> str:
    return _first([*map(label, names)])


def _first(said: list[str]) -> str:
    more = f" and {len(said) - MOST} more" if len(said) > MOST else ""
    return ", ".join(said[:MOST]) + more
