"""docker-compose.yml says what it should, in words that Compose takes."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from aicache_tasks.errors import SettingsError
from aicache_tasks.settings import Settings
from tests.deploy.conftest import FILE, ROOT, Run, binary, make_secrets, run_make_secrets
from workers.app import HARD_LIMIT_S, SOFT_LIMIT_S

pytestmark = pytest.mark.deploy

ALWAYS = {"broker", "cache", "worker", "beat", "flower"}
OBSERVING = {"prometheus", "grafana"}
PLANTED = {
    "a key that there is not": ("interval: 60s", "intervals: 60s"),
    "a service that there is not": ("cache: {condition:", "cash: {condition:"),
    "a secret that there is not": ("secrets: [cache.acl]", "secrets: [cash.acl]"),
    "a network that there is not": ("networks: [outside]", "networks: [inside]"),
    "a number that is none": ("retries: 3", "retries: three"),
    "an anchor that there is not": ("<<: *valkey", "<<: *valkeys"),
}
FULL_VERSION = re.compile(r"[a-z0-9-]+(/[a-z0-9-]+)?:v?\d+\.\d+\.\d+(-[a-z0-9.]+)?")
SECRET = re.compile(r"password|secret|token|api_?key|auth|url", re.IGNORECASE)
SAID = re.compile(r"DEPLOY_SECRETS is missing a value: .*make-secrets.*Flower's login.*\.env")


@pytest.mark.parametrize("profile", [[], ["--profile", "observe"]])
def test_compose_takes_it(compose: Run, passwords: Path, profile: list[str]) -> None:
    done = compose(*profile, "config", "--quiet", DEPLOY_SECRETS=str(passwords))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("mistake", PLANTED)
def test_compose_does_not_take_it_with(mistake: str, compose: Run, passwords: Path, tmp_path: Path) -> None:
    right, wrong = PLANTED[mistake]
    assert right in FILE.read_text()
    (tmp_path / "wrong.yml").write_text(FILE.read_text().replace(right, wrong, 1))
    done = compose("--profile", "observe", "config", "-q", file=tmp_path / "wrong.yml", DEPLOY_SECRETS=str(passwords))
    assert done.returncode != 0


@pytest.mark.parametrize("given", [{}, {"DEPLOY_SECRETS": ""}])
def test_nothing_starts_without_passwords_and_compose_says_where_they_come_from(
    compose: Run, given: dict[str, str]
) -> None:
    done = compose("config", "--quiet", **given)
    assert done.returncode != 0
    assert SAID.search(done.stderr)


def test_what_make_secrets_prints_is_what_compose_wants_in_its_env_file(compose: Run, tmp_path: Path) -> None:
    made = make_secrets(tmp_path / "just made")
    printed = (tmp_path / "just made.env").read_text()
    assert printed == f"DEPLOY_SECRETS={made}\n"
    done = compose("--env-file", str(tmp_path / "just made.env"), "config", "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    assert {str(Path(secret["file"]).parent) for secret in json.loads(done.stdout)["secrets"].values()} == {str(made)}


def test_where_there_is_no_compose_the_checks_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AssertionError, match=r"Linux on x86-64 and Python 3\.11"):
        binary()


def test_prometheus_and_grafana_come_with_their_profile_only(compose: Run, passwords: Path) -> None:
    plain = compose("config", "--services", DEPLOY_SECRETS=str(passwords)).stdout.split()
    both = compose("--profile", "observe", "config", "--services", DEPLOY_SECRETS=str(passwords)).stdout.split()
    assert set(plain) == ALWAYS
    assert set(both) == ALWAYS | OBSERVING


@pytest.fixture(params=sorted(ALWAYS | OBSERVING))
def service(request: pytest.FixtureRequest, services: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = services[request.param]
    return found


def test_one_service_builds_the_image_that_the_others_share(services: dict[str, Any]) -> None:
    """Compose builds side by side, and of two that export one tag one fails."""
    assert [name for name in services if "build" in services[name]] == ["worker"]
    for name in ("beat", "flower"):
        assert services[name]["image"] == services["worker"]["image"]
        assert services[name]["pull_policy"] == "never"  # nobody else's image of this name
        assert "worker" in services[name]["depends_on"]  # `up --build beat` builds too


def test_it_starts_on_a_machine_with_one_core_and_an_older_engine(service: dict[str, Any]) -> None:
    assert float(service["deploy"]["resources"]["limits"]["cpus"]) <= 1  # more than there are is refused
    assert "start_interval" not in service["healthcheck"]  # is of Docker Engine 25


def documented() -> tuple[set[str], set[str]]:
    """Return the variables that the documents name and that no file holds: of the settings, of the engines."""
    rows = re.findall(r"^\| `aicache_\w+` \| `(AICACHE_\w+)`", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    engines = re.findall(r"^\| `(AICACHE_OPENAI_\w+)`", (ROOT / "docs/engines.md").read_text(), re.MULTILINE)
    local = {"AICACHE_LLM_URL", "AICACHE_LLM_MODEL"}
    secret = {"AICACHE_OPENAI_API_KEY", "AICACHE_OPENAI_API_KEY_FILE"}
    return {*rows} - {"AICACHE_URL"}, ({*engines} | local) - secret


def test_each_variable_of_the_documents_reaches_those_who_read_it_from_the_env_file(
    compose: Run, passwords: Path, tmp_path: Path
) -> None:
    settings, engines = documented()
    assert {"AICACHE_NAMESPACE", "AICACHE_PRICES", "AICACHE_SECRET"} <= settings
    assert {"AICACHE_OPENAI_FALLBACK_MODEL", "AICACHE_OPENAI_EXTRA_BODY"} <= engines
    said = {name: f'{{"the": "{name}"}}' for name in settings | engines}
    lines = [f"{name}='{value}'\n" for name, value in said.items()]
    (tmp_path / "env").write_text("".join([f"DEPLOY_SECRETS={passwords}\nAICACHE_ENGINE=local\n", *lines]))
    done = compose("--env-file", str(tmp_path / "env"), "config", "--format", "json")
    got = {name: service.get("environment") or {} for name, service in json.loads(done.stdout)["services"].items()}
    assert got["worker"].items() >= (said | {"AICACHE_ENGINE": "local"}).items()
    for name in ("beat", "flower"):
        assert got[name].items() >= {one: said[one] for one in settings}.items()
        assert not got[name].keys() & engines


def test_nothing_is_set_that_the_env_file_does_not_set(services: dict[str, Any]) -> None:
    settings, engines = documented()
    assert {services["worker"]["environment"][name] for name in settings | engines} == {None}


def test_a_web_application_finds_the_servers_network_by_the_name_in_the_guide(config: dict[str, Any]) -> None:
    assert config["networks"]["data"]["name"] == "aicache-data"
    assert "aicache-data: {external: true}" in (ROOT / "docs" / "deployment.md").read_text()


def example(service: str, folder: Path) -> Path:
    """Return the guide's Compose file for *service*, as a file in *folder*."""
    guide = textwrap.dedent((ROOT / "docs" / "deployment.md").read_text().replace("\n  ", "\n"))
    (found,) = re.findall(rf"```yaml\n(services:\n  {service}:\n.+?)```", guide, re.DOTALL)
    (folder / "example.yml").write_text(found)
    return folder / "example.yml"


def test_the_example_of_a_web_application_is_one_that_compose_takes(
    compose: Run, passwords: Path, tmp_path: Path
) -> None:
    done = compose("config", "--format", "json", file=example("web", tmp_path), DEPLOY_SECRETS=str(passwords))
    assert done.returncode == 0, done.stderr
    web = json.loads(done.stdout)["services"]["web"]
    assert web["networks"].keys() == {"default", "aicache-data"}
    assert {secret["source"] for secret in web["secrets"]} == {"broker_url", "cache_worker_url"}


def test_with_the_guide_s_example_flower_may_invalidate(compose: Run, passwords: Path, tmp_path: Path) -> None:
    both = ("--file", str(example("flower", tmp_path)), "config", "--format", "json")
    done = compose(*both, DEPLOY_SECRETS=str(passwords))
    assert done.returncode == 0, done.stderr
    flower = json.loads(done.stdout)["services"]["flower"]
    assert flower["environment"]["AICACHE_FLOWER_INVALIDATE"] == "1"
    assert flower["environment"]["AICACHE_URL_FILE"] == "/run/secrets/cache_worker_url"
    assert "cache_worker_url" in {secret["source"] for secret in flower["secrets"]}


def test_the_guide_names_each_variable_of_the_file() -> None:
    guide = (ROOT / "docs" / "deployment.md").read_text()
    assert {name for name in re.findall(r"\$\{(\w+)", FILE.read_text()) if f"`{name}" not in guide} == set()


def test_each_service_has_a_health_check_that_ends(service: dict[str, Any]) -> None:
    check = service["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries", "start_period"} <= check.keys()


def test_each_image_is_pinned_by_its_full_version(service: dict[str, Any]) -> None:
    assert FULL_VERSION.fullmatch(service["image"])


def test_each_service_is_hardened(service: dict[str, Any]) -> None:
    assert service["user"].split(":")[0] not in ("", "0", "root")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert (service["read_only"], service["init"]) == (True, True)
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert not service.keys() & {"privileged", "cap_add", "devices", "pid", "ipc", "network_mode", "userns_mode"}


def test_ports_are_open_to_this_host_only(service: dict[str, Any]) -> None:
    assert {port["host_ip"] for port in service.get("ports", [])} <= {"127.0.0.1"}


def test_servers_are_reached_by_their_own_network_only(services: dict[str, Any], config: dict[str, Any]) -> None:
    for name in ("broker", "cache"):
        assert "ports" not in services[name]
        assert services[name]["networks"].keys() == {"data"}
    assert config["networks"]["data"]["internal"] is True


def test_no_secret_is_in_an_environment_or_a_command(service: dict[str, Any], passwords: Path) -> None:
    named = {name: value for name, value in (service.get("environment") or {}).items() if SECRET.search(name)}
    for name, value in named.items():
        assert value is None or value.startswith("/run/secrets/") == name.endswith("_FILE"), name
    held = {path.read_text().strip() for path in passwords.iterdir() if path.suffix != ".acl"} - {""}
    assert not any(secret in str(service) for secret in held)


def test_each_service_gets_the_secrets_it_names_and_no_other(service: dict[str, Any]) -> None:
    said = {*(service.get("environment") or {}).values(), *(service["command"] or [])}
    named = {Path(value).name for value in said if str(value).startswith("/run/secrets/")}
    assert {each["source"] for each in service.get("secrets", [])} == named


def test_flower_has_a_login_and_no_more_than_an_observers_rights(services: dict[str, Any]) -> None:
    environ = services["flower"]["environment"]
    assert environ["FLOWER_BASIC_AUTH_FILE"] == "/run/secrets/flower_basic_auth"
    assert environ["AICACHE_URL_FILE"] == "/run/secrets/cache_observer_url"


def test_nobody_gets_the_operators_password(config: dict[str, Any]) -> None:
    assert "cache_admin" not in str(config)


def test_a_worker_may_finish_its_longest_task(services: dict[str, Any]) -> None:
    assert seconds(services["worker"]["stop_grace_period"]) > HARD_LIMIT_S > SOFT_LIMIT_S


def seconds(text: str) -> float:
    """Return how long Compose's *text* is.

    >>> seconds("1h2m3s")
    3723.0
    """
    scale = {"h": 3600, "m": 60, "s": 1}
    return float(sum(int(number) * scale[unit] for number, unit in re.findall(r"(\d+)([hms])", text)))


def test_each_service_has_time_to_stop(service: dict[str, Any]) -> None:
    assert seconds(service["stop_grace_period"]) >= 20


def test_the_servers_keep_what_they_should(services: dict[str, Any]) -> None:
    broker, cache = (flags(services[name]["command"]) for name in ("broker", "cache"))
    assert (broker["maxmemory-policy"], broker["appendonly"]) == ("noeviction", "yes")
    assert (cache["maxmemory-policy"], cache["appendonly"], cache["save"]) == ("volatile-lfu", "no", "")
    assert "/data" in [volume["target"] for volume in services["broker"]["volumes"]]


def flags(command: list[str]) -> dict[str, str]:
    """Return the directives of a server's command."""
    words = command[1:]
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}


def test_a_server_has_room_beside_what_it_holds(services: dict[str, Any]) -> None:
    for name in ("broker", "cache"):
        held = int(flags(services[name]["command"])["maxmemory"].removesuffix("mb")) * 2**20
        assert int(services[name]["deploy"]["resources"]["limits"]["memory"]) >= 1.5 * held


def test_a_server_that_is_to_hold_more_gets_a_larger_container(compose: Run, passwords: Path) -> None:
    more = dict.fromkeys(("BROKER_MAXMEMORY", "CACHE_MAXMEMORY"), "2gb")
    more |= dict.fromkeys(("BROKER_MEMORY", "CACHE_MEMORY"), "3g")
    done = compose("config", "--format", "json", DEPLOY_SECRETS=str(passwords), **more)
    for name in ("broker", "cache"):
        service = json.loads(done.stdout)["services"][name]
        assert flags(service["command"])["maxmemory"] == "2gb"
        assert int(service["deploy"]["resources"]["limits"]["memory"]) == 3 * 2**30


def test_another_namespace_has_logins_for_its_own_keys_only(tmp_path: Path) -> None:
    acl = (make_secrets(tmp_path / "made", "--namespace", "shop") / "cache.acl").read_text()
    patterns = set(re.findall(r" ~(\S+)", acl))
    assert patterns == {"{shop:*", "{shop:s}:*", "{shop:??}:t:*"}


@pytest.mark.parametrize("namespace", ["*", "a b", "a\n", "", "x" * 33])
def test_no_logins_are_made_for_a_namespace_that_the_settings_refuse(namespace: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        Settings.from_mapping({"aicache_namespace": namespace})
    refused = run_make_secrets(tmp_path / "made", "--namespace", namespace)
    assert refused.returncode == 2
    assert "must be 1 to 32" in refused.stderr
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["dol$lar", "a #b", "a'b", "a\nb"])
def test_a_folder_that_compose_would_read_otherwise_is_refused(name: str, tmp_path: Path) -> None:
    refused = run_make_secrets(tmp_path / name)
    assert refused.returncode == 2
    assert "Compose may read" in refused.stderr


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = run_make_secrets(tmp_path / "file" / "made")
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [refused.stderr.strip()]


def test_passwords_that_are_in_use_are_not_replaced(passwords: Path) -> None:
    before = {path.name: path.read_text() for path in passwords.iterdir()}
    assert "are not replaced" in run_make_secrets(passwords).stderr
    assert {path.name: path.read_text() for path in passwords.iterdir()} == before


def test_containers_of_any_user_can_read_a_password_and_other_people_of_the_host_cannot(passwords: Path) -> None:
    assert passwords.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in passwords.iterdir())


def test_the_servers_get_digests_of_passwords_only(passwords: Path) -> None:
    shown = "".join(path.read_text() for path in passwords.glob("*.acl"))
    urls = [path.read_text() for path in passwords.glob("*_url")]
    for url in urls:
        user, password = re.findall(r"//([\w-]+):(\w+)@", url)[0]
        assert re.search(rf"^user {user} on #[0-9a-f]{{64}} ", shown, re.MULTILINE)
        assert password not in shown
    assert len(urls) == 4
