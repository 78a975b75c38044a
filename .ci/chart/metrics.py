"""Dashboard and alerts against what a gateway really shows: every query parses, every metric and label in it exists."""

import json
import re

import promql_parser

# What Prometheus adds to each series of a pod.
ADDED = {"container", "endpoint", "instance", "job", "namespace", "pod"}


class Families:
    """Names and labels on the pages of running gateways."""

    def __init__(self, pages, root):
        self.labels, self.empty = {}, set()
        for page in filter(None, pages):
            for kind, name in re.findall(r"^# TYPE (\S+) (\S+)", page, re.M):
                names = [kind] if name != "histogram" else [f"{kind}_bucket", f"{kind}_sum", f"{kind}_count"]
                for each in names:
                    self.labels.setdefault(each, set())
            for name, labels in re.findall(r"^([a-z_]+)\{(.*)\} \S+$", page, re.M):
                self.labels.setdefault(name, set()).update(re.findall(r"([a-z_]+)=\"", labels))
                self.labels[name].add("")
        self.codes = (root / "docs/refusals.md").read_text()
        # A family that nothing here made count: its labels are words of the source.
        self.source = (root / "proxy/src/telemetry/metrics.rs").read_text()

    def check(self, expression, shown):
        """The query, and the labels that its legend or summary shows."""
        assert self.labels, "no gateway ran"
        selectors, grouped = [], set()
        walk(promql_parser.parse(plain(expression)), selectors, grouped)
        assert selectors, "it asks for nothing"
        known = set(ADDED)
        for name, matched in selectors:
            assert name in self.labels, f"there is no {name}"
            for label, wanted in matched.items():
                if label not in ADDED:
                    self.has(name, label)
                for code in re.findall(r"[a-z]+\.[a-z_]+", wanted if label in ("code", "result") else ""):
                    assert f"`{code}`" in self.codes, f"there is no refusal {code}"
            known |= self.labels[name]
        for label in (grouped | shown) - known:
            assert any(self.has(name, label, say=False) for name, _ in selectors), f"none of {[n for n, _ in selectors]} has {label}"

    def has(self, name, label, say=True):
        labels = self.labels[name]
        found = label in labels or ("" not in labels and f'"{label}"' in self.source)
        assert found or not say, f"{name} has no label {label}, but {sorted(labels - {''})}"
        return found


def plain(expression):
    """Grafana's variables filled in."""
    for name, value in (("$__rate_interval", "5m"), ("$namespace", "n"), ("$pod", "p")):
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def walk(node, selectors, grouped):
    """Collects selectors with their labels, and the labels that are grouped by."""
    if isinstance(node, promql_parser.MatrixSelector):
        node = node.vector_selector
    if isinstance(node, promql_parser.VectorSelector):
        selectors.append((node.name, {matcher.name: matcher.value for matcher in node.matchers.matchers}))
        return
    if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
        grouped.update(node.modifier.labels)
    for name in ("lhs", "rhs", "expr", "param"):
        child = getattr(node, name, None)
        if child is not None:
            walk(child, selectors, grouped)
    for child in getattr(node, "args", None) or []:
        walk(child, selectors, grouped)


def queries(rendered):
    """Name, expression and shown labels of every query in dashboard and alerts."""
    found = []
    dashboard = json.loads(next(each for each in rendered.all("ConfigMap") if "isthmus.json" in each["data"])["data"]["isthmus.json"])
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            shown = set(re.findall(r"\{\{ *([a-z_]+) *\}\}", target["legendFormat"]))
            found.append((f"dashboard, {panel['title']} {target['refId']}", target["expr"], shown))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            series, label = re.fullmatch(r"label_values\((.*), ([a-z_]+)\)", variable["definition"]).groups()
            found.append((f"dashboard, variable {variable['name']}", f"count by ({label}) ({series})", set()))
    for group in rendered.get("PrometheusRule")["spec"]["groups"]:
        for rule in group["rules"]:
            shown = set(re.findall(r"\$labels\.([a-z_]+)", rule["annotations"]["summary"]))
            found.append((f"alert, {rule['alert']}", rule["expr"], shown))
    assert len(found) > 50
    return found


def runbook(rendered, file):
    sections = re.findall(r"^## (\S+)$", file.read_text(), re.M)
    rules = [rule for group in rendered.get("PrometheusRule")["spec"]["groups"] for rule in group["rules"]]
    alerts = [rule["alert"] for rule in rules]
    assert sorted(sections) == sorted(alerts), set(sections) ^ set(alerts)
    for rule in rules:
        assert rule["annotations"]["runbook_url"].endswith(f"#{rule['alert'].lower()}")
