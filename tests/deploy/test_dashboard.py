"""Each question of the dashboard and the rules names a metric, and labels of it, that somebody tells Prometheus."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from aicache_tasks.prices import SUMMED
from aicache_tasks.reports.families import nothing
from aicache_tasks.reports.prometheus import RecordsCollector
from aicache_tasks.testing import EmbeddedServer
from tests.deploy.conftest import ROOT
from tests.reported import calls, count_up, make_app, others, reader_of

pytestmark = pytest.mark.deploy

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/aicache.json").read_text())
PROMETHEUS_ADDS = {"up": {"job", "instance"}}
"""To each target that it asks."""
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
VARIABLES = {"$__rate_interval": "5m", "$__range": "6h", "$operation": ".*"}


def plots() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    import yaml

    groups = yaml.safe_load((DEPLOY / "prometheus/aicache.rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[str]:
    """Return what is asked of Prometheus, with what Grafana puts in for its variables."""
    asked = [target["expr"] for panel in plots() for target in panel["targets"]]
    for name, value in VARIABLES.items():
        asked = [text.replace(name, value) for text in asked]
    return [*asked, *(rule["expr"] for rule in rules())]


@pytest.fixture(scope="module")
def told() -> dict[str, set[str]]:
    """The labels of each metric that is told, by its name: by the records of calls of every kind, by Flower, by
    Prometheus of each target."""
    names = {f"{family.name}{suffix}" for family in nothing() for suffix in SUFFIXES[family.type]}
    with EmbeddedServer() as server:
        app = make_app(server.url, aicache_slow_operation_ms=0.001)
        now = reader_of(app).now_s()
        count_up(app, [*calls(200, [now], ["shout"]), *others(3, now, "shout", "success", step="invalidate")])
        reader = reader_of(app)
        from aicache_tasks import alerts

        list(alerts.changes(reader.summaries))
        found = _labels([*RecordsCollector(lambda: reader).collect(), *_of_flower()])
    return {name: found.get(name, set()) for name in names | found.keys()} | PROMETHEUS_ADDS


def _of_flower() -> Iterator[Any]:
    """Yield what Flower tells, each with a sample."""
    from flower.events import PrometheusMetrics
    from prometheus_client.metrics import MetricWrapperBase

    for metric in vars(PrometheusMetrics()).values():
        if isinstance(metric, MetricWrapperBase):
            metric.labels(*["x"] * len(metric._labelnames))
            yield from metric.collect()


def _labels(families: list[Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for family in families:
        for sample in family.samples:
            found[sample.name] |= sample.labels.keys()
    return found


def selectors(node: Any) -> Iterator[Any]:
    """Yield the vector selectors of a parsed expression."""
    import promql_parser as promql

    if isinstance(node, promql.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        if isinstance(child := getattr(node, name, None), promql.Expr):
            yield from selectors(child)
    for argument in getattr(node, "args", None) or []:
        yield from selectors(argument)


def grouped(node: Any) -> Iterator[tuple[Any, list[str]]]:
    """Yield each aggregation of a parsed expression with the labels that it groups by."""
    import promql_parser as promql

    if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
        yield node, list(node.modifier.labels)
    for name in ("expr", "lhs", "rhs"):
        if isinstance(child := getattr(node, name, None), promql.Expr):
            yield from grouped(child)
    for argument in getattr(node, "args", None) or []:
        yield from grouped(argument)


@pytest.mark.parametrize("text", sorted(set(expressions())))
def test_a_question_names_metrics_and_labels_that_there_are(text: str, told: dict[str, set[str]]) -> None:
    import promql_parser as promql

    parsed = promql.parse(text)
    asked = list(selectors(parsed))
    assert asked or text == "vector(0)"
    for selector in asked:
        assert selector.name in told
        assert {matcher.name for matcher in selector.matchers.matchers} <= told[selector.name]
    for aggregation, labels in grouped(parsed):
        for selector in selectors(aggregation):
            assert set(labels) <= told[selector.name]


@pytest.mark.parametrize("text", ["sum(rate(aicache_lookups_totl[5m]))", "sum by (operator) (aicache_lookups_total)"])
def test_a_question_with_a_slip_would_be_found(text: str, told: dict[str, set[str]]) -> None:
    with pytest.raises(AssertionError):
        test_a_question_names_metrics_and_labels_that_there_are(text, told)


def test_a_token_counts_once_in_a_sum_of_tokens() -> None:
    import promql_parser as promql

    asked = [one for text in expressions() for one in selectors(promql.parse(text)) if "_tokens_" in one.name]
    assert len(asked) == 3
    for selector in asked:
        (kinds,) = (matcher.value for matcher in selector.matchers.matchers if matcher.name == "kind")
        assert kinds.split("|") == [*SUMMED]


def test_the_choice_of_operations_comes_from_a_metric_that_there_is(told: dict[str, set[str]]) -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"])
    assert found
    assert found[2] in told[found[1]]


def test_each_plot_says_what_it_shows_in_which_unit() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in plots():
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_no_plot_lies_on_another() -> None:
    cells = [cell for panel in DASHBOARD["panels"] for cell in _cells(panel["gridPos"])]
    assert len(cells) == len(set(cells))


def _cells(at: dict[str, int]) -> Iterator[tuple[int, int]]:
    assert at["x"] + at["w"] <= 24
    yield from ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"]))


def test_grafana_finds_the_dashboard_and_the_dashboard_its_prometheus(services: dict[str, Any]) -> None:
    import yaml

    folder = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards/aicache.yml").read_text())["providers"]
    asked = [panel["datasource"]["uid"] for panel in plots()] + [
        t["datasource"]["uid"] for p in plots() for t in p["targets"]
    ]
    assert set(asked) == {source["uid"]}
    mounts = {volume["target"]: volume["source"] for volume in services["grafana"]["volumes"]}
    assert mounts[provider["options"]["path"]] == str(DEPLOY / "grafana/dashboards")
    assert mounts["/etc/grafana/provisioning"] == str(folder)
    assert source["url"] == "http://prometheus:9090"


def test_prometheus_asks_flower_and_reads_its_rules(services: dict[str, Any]) -> None:
    import yaml

    settings = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    (job,) = settings["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["flower:5555"]}]
    assert "--port=5555" in services["flower"]["command"]
    assert services["flower"]["networks"].keys() & services["prometheus"]["networks"].keys()
    assert all((DEPLOY / "prometheus" / name).is_file() for name in settings["rule_files"])


def test_each_rule_says_what_is_wrong_and_how_bad_it_is() -> None:
    for rule in rules():
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
    assert len({rule["alert"] for rule in rules()}) == len(rules())
