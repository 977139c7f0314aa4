"""Deployments: the compose stack, Kubernetes, the Dockerfile, alerts over logs, and the committed example."""

from __future__ import annotations

import importlib.resources
import json
import os
import subprocess
import sys
from contextlib import suppress

import jsonschema
import kubernetes_validate
import pytest
import yaml

import eventcore as ec
from eventcore_generate.cli import MAKERS
from eventcore_generate.source import Source

LOGGING = """
[handlers.log]
format = "json"
output = "logs/app.jsonl"
min_severity = "warning"
"""

TLS = """
health_port = 9191
certfile = "server.pem"
token = "env:METRICS_TOKEN"
"""


def files(settings, name, **options):
    """Return what a maker makes of settings, by file name."""
    import inspect

    own = inspect.signature(MAKERS[name], eval_str=True).parameters
    given = {key: option.default for key, option in own.items() if key != "source"} | options
    return MAKERS[name](Source(settings), **given)


def add(settings, text):
    """Append to the settings."""
    settings.write_text(settings.read_text() + text)


# -- compose -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stack(settings):
    """Return the files of the stack."""
    add(settings, LOGGING)
    return files(settings, "compose")


@pytest.fixture
def services(stack):
    """Return the services of the stack."""
    return yaml.safe_load(stack["compose.yaml"])["services"]


def compose_schema():
    """Return the Compose specification's schema, as check-jsonschema carries it."""
    folder = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    return json.loads((folder / "compose-spec.json").read_text())


def test_the_stack_fits_the_compose_specification(stack):
    """``compose.yaml`` is valid by the Compose specification's schema, which refuses a key that is none."""
    content = yaml.safe_load(stack["compose.yaml"])
    validator = jsonschema.validators.validator_for(compose_schema())(compose_schema())
    validator.validate(content)
    content["services"]["app"]["prots"] = []
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(content)


def test_the_stack_is_complete(stack, services):
    """Every file and folder that a service mounts is made, every volume is declared, every dependency is a service."""
    content = yaml.safe_load(stack["compose.yaml"])
    for service in services.values():
        for mount in service.get("volumes", ()):
            place = mount.partition(":")[0]
            if place.startswith("./"):
                assert any(name == place[2:] or name.startswith(f"{place[2:]}/") for name in stack), place
            else:
                assert place in content["volumes"]
        assert set(service.get("depends_on", ())) <= set(services)
        image = service.get("image", "")
        assert ":" in image
        assert not image.endswith(":latest")


def test_ports_do_not_clash_and_are_this_machines(services):
    """No two services want one port, the application keeps 9090, and nothing listens beyond this machine."""
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert len({port.split(":")[1] for port in ports}) == len(ports)
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert services["app"]["ports"] == ["127.0.0.1:9090:9090"]
    assert services["prometheus"]["ports"] == ["127.0.0.1:9091:9090"]


def test_log_stores_are_profiles(services):
    """Elasticsearch, Kibana and Filebeat come with ``elastic``, Loki with ``loki``, nothing else is left out."""
    profiles = {name: service.get("profiles") for name, service in services.items() if "profiles" in service}
    assert profiles == {
        "elasticsearch": ["elastic"],
        "kibana": ["elastic"],
        "filebeat": ["elastic"],
        "loki": ["loki"],
        "alloy": ["loki"],
    }


def test_retention_and_scrape_interval_are_options(settings):
    """``--retention-time``, ``--retention-size`` and ``--scrape-interval`` are where Prometheus reads them."""
    made = files(settings, "compose", retention_time="7d", retention_size="5GB", scrape_interval="5s")
    command = yaml.safe_load(made["compose.yaml"])["services"]["prometheus"]["command"]
    assert "--storage.tsdb.retention.time=7d" in command
    assert "--storage.tsdb.retention.size=5GB" in command
    assert yaml.safe_load(made["prometheus.yml"])["global"]["scrape_interval"] == "5s"


def test_an_amount_of_memory_that_is_none_is_one_clear_error(generate):
    """Kubernetes takes no ``3zz``: the error names option and value, and says what to write."""
    assert "--memory '3zz': write a number of bytes, with a unit as in 256Mi" in generate(
        "k8s", "--memory", "3zz", code=2
    )


@pytest.mark.parametrize(
    ("option", "value"), [("--retention-time", "two weeks"), ("--retention-size", "10"), ("--scrape-interval", "15")]
)
def test_an_option_that_is_no_duration_or_size_is_one_error(generate, option, value):
    """A value that Prometheus would not take is refused with what to write."""
    assert f"{option} '{value}': write a number and a unit" in generate("compose", option, value, code=2)


@pytest.mark.server
def test_prometheus_and_alertmanager_accept_their_part(stack, tmp_path, promtool, amtool):
    """``promtool`` and ``amtool`` accept the configurations of the stack, and the names in them are its services."""
    for name in ("prometheus.yml", "rules.yml", "alertmanager.yml"):
        (tmp_path / name).write_text(stack[name])
    for command in ([promtool, "check", "config", "prometheus.yml"], [amtool, "check-config", "alertmanager.yml"]):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    content = yaml.safe_load(stack["prometheus.yml"])
    assert content["scrape_configs"][0]["static_configs"][0]["targets"] == ["app:9090"]
    assert content["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] == ["alertmanager:9093"]


def test_grafana_finds_data_and_dashboards(stack, services):
    """Provisioning names servers of the stack, and the folder in which its dashboards are mounted."""
    sources = yaml.safe_load(stack["grafana/provisioning/datasources/datasources.yml"])["datasources"]
    for source in sources:
        host, port = source["url"].removeprefix("http://").split(":")
        assert host in services
        assert port.isdigit()
    uids = {source["uid"] for source in sources}
    assert sources[0]["jsonData"]["exemplarTraceIdDestinations"][0]["datasourceUid"] in uids
    [provider] = yaml.safe_load(stack["grafana/provisioning/dashboards/dashboards.yml"])["providers"]
    mounts = [mount.split(":")[1] for mount in services["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounts
    assert {"grafana/dashboards/tiny_dancer.json", "grafana/dashboards/eventcore.json"} <= set(stack)


def test_those_who_ship_logs_find_them(stack, services):
    """Filebeat and Alloy read the volume to which the application writes its lines."""
    app_folder = services["app"]["volumes"][0]
    assert app_folder == "logs:/app/logs"
    for name, file in (("filebeat", "filebeat.yml"), ("alloy", "config.alloy")):
        mount = next(mount for mount in services[name]["volumes"] if mount.startswith("logs:"))
        assert f"{mount.split(':')[1]}/*.json*" in stack[file]
    filebeat = yaml.safe_load(stack["filebeat.yml"])
    assert filebeat["output.elasticsearch"]["index"] == "tiny-dancer-%{+yyyy.MM.dd}"


# -- access ------------------------------------------------------------------------------------------------------------


@pytest.mark.server
def test_a_guarded_server_is_scraped_with_its_token(settings, tmp_path, promtool):
    """With TLS and a token in the settings, Prometheus uses them, from files, and the stack mounts these."""
    add(settings, TLS)
    made = files(settings, "prometheus-config")
    for name, text in ({**made, **files(settings, "prometheus-rules"), "token": "t", "ca.pem": ""}).items():
        (tmp_path / name).write_text(text)
    job = yaml.safe_load(made["prometheus.yml"])["scrape_configs"][0]
    assert job["scheme"] == "https"
    assert job["authorization"] == {"type": "Bearer", "credentials_file": "token"}
    assert "METRICS_TOKEN" not in made["prometheus.yml"]
    done = subprocess.run(
        [promtool, "check", "config", "--syntax-only", "prometheus.yml"], cwd=tmp_path, check=False, timeout=60
    )
    assert done.returncode == 0
    mounts = yaml.safe_load(files(settings, "compose")["compose.yaml"])["services"]["prometheus"]["volumes"]
    assert {"./ca.pem:/etc/prometheus/ca.pem:ro", "./token:/etc/prometheus/token:ro"} <= set(mounts)


def test_basic_authentication_is_used(settings):
    """With a user name in the settings, Prometheus sends it with the password of a file."""
    add(settings, 'username = "prometheus"\npassword = "env:PASSWORD"\n')
    job = yaml.safe_load(files(settings, "prometheus-config")["prometheus.yml"])["scrape_configs"][0]
    assert job["basic_auth"] == {"username": "prometheus", "password_file": "password"}


# -- Kubernetes --------------------------------------------------------------------------------------------------------


def manifests(settings, **options):
    """Return the manifests by kind."""
    documents = yaml.safe_load_all(files(settings, "k8s", **options)["k8s.yaml"])
    return {document["kind"]: document for document in documents}


@pytest.mark.parametrize("extra", ["", TLS, LOGGING])
def test_kubernetes_schema_accepts_the_manifests(settings, extra):
    """Deployment and Service are valid by Kubernetes' own schemas, strictly."""
    add(settings, extra)
    for document in manifests(settings).values():
        kubernetes_validate.validate(document, "1.33", strict=True)


def test_kubernetes_schema_can_fail(settings):
    """The schema refuses what the MoE guide prints: a Deployment without a selector."""
    deployment = manifests(settings)["Deployment"]
    del deployment["spec"]["selector"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.33", strict=True)


def test_the_deployment_is_probed_and_scraped(settings):
    """Probes and annotations name ports that the container has; liveness and readiness have endpoints of their own."""
    add(settings, TLS)
    made = manifests(settings, service_monitor=True)
    template = made["Deployment"]["spec"]["template"]
    [container] = template["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": 9090, "health": 9191}
    assert template["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "9090",
        "prometheus.io/path": "/metrics",
        "prometheus.io/scheme": "https",
    }
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in probes.values()} == {"health"}
    assert {probe["scheme"] for probe in probes.values()} == {"HTTPS"}
    assert (probes["liveness"]["path"], probes["readiness"]["path"]) == ("/livez", "/readyz")
    labels = template["metadata"]["labels"].items()
    assert made["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels
    assert made["Service"]["spec"]["selector"].items() <= labels
    [endpoint] = made["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in made["Service"]["spec"]["ports"]}
    monitored = made["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items()
    assert monitored <= made["Service"]["metadata"]["labels"].items()


def test_a_pod_may_end_in_order(settings):
    """The grace period is longer than shutdown may take by the settings."""
    settings.write_text("shutdown_timeout_s = 40\n" + settings.read_text())
    assert manifests(settings)["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 40


def test_names_fit_kubernetes(settings):
    """A service whose name is no name of Kubernetes gets one that is, and the schema accepts it."""
    settings.write_text(settings.read_text().replace('"tiny-dancer"', '"9 Tiny_Dancer!"').replace("1.2.3", "1+local"))
    made = manifests(settings)
    assert made["Service"]["metadata"]["name"] == "tiny-dancer"
    assert made["Service"]["metadata"]["labels"]["app.kubernetes.io/version"] == "1-local"


# -- the Dockerfile ----------------------------------------------------------------------------------------------------

INSTRUCTIONS = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "EXPOSE", "HEALTHCHECK", "CMD"}


def instructions(text):
    """Return the instructions of a Dockerfile with their arguments, lines joined."""
    joined = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [line.split(None, 1) for line in joined.splitlines()]


def test_the_dockerfile_is_one(settings):
    """It consists of Docker's instructions, runs as no root, opens the ports, and says the guides' variables."""
    add(settings, "health_port = 9191\n" + LOGGING)
    made = instructions(files(settings, "dockerfile", run="python -m shop --all")["Dockerfile"])
    assert {name for name, _ in made} == INSTRUCTIONS
    facts = dict(made)
    assert made[0][0] == "FROM"
    assert facts["USER"] == "app"
    assert facts["EXPOSE"] == "9090 9191"
    assert json.loads(facts["CMD"]) == ["python", "-m", "shop", "--all"]
    variables = dict(pair.split("=", 1) for pair in facts["ENV"].split())
    assert variables["METRICS_PORT"] == "9090"
    assert variables["LOG_LEVEL"] == "warning"
    order = [name for name, _ in made]
    assert order.index("RUN") < order.index("USER") < order.index("CMD")


@pytest.mark.parametrize("running", [True, False])
def test_its_health_check_tells_alive_from_dead(settings, tmp_path, running):
    """The health check's own command succeeds against a process that serves with these settings, and fails without."""
    with ec.configure(handlers={"buffer": {}}, http={"port": 0}) as emitter:
        port = emitter.services["http"].port
        settings.write_text(settings.read_text().replace("9090", str(port)))
        check = dict(instructions(files(settings, "dockerfile")["Dockerfile"]))["HEALTHCHECK"]
        command = json.loads(check.partition("CMD ")[2])
        if not running:
            emitter.shutdown()
        done = subprocess.run([sys.executable, *command[1:]], check=False, timeout=60, capture_output=True)
    assert (done.returncode == 0) is running


def test_the_variables_are_settings(settings, monkeypatch):
    """The environment that the Dockerfile makes is one that eventcore accepts, and serves on the port it opens."""
    facts = dict(instructions(files(settings, "dockerfile")["Dockerfile"]))
    for pair in facts["ENV"].split():
        monkeypatch.setenv(*pair.split("=", 1))
    assert Source(settings).port == int(facts["EXPOSE"])


# -- alerts over logs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", ["tinyllm", "moe", "tracing", "ecs"])
def test_watches_name_what_lines_have(settings, tmp_path, schema):
    """In every schema of the log, the watches' keys and values are found in lines that are really written."""
    from router.events import CircuitOpened, RouteRequest

    add(settings, f'[handlers.log]\nformat = "json"\nschema = "{schema}"\noutput = "{tmp_path}/app.jsonl"\n')
    made = files(settings, "log-alerts")
    with ec.configure(config=settings, http={"port": 0}) as emitter:
        emitter.emit(CircuitOpened(breaker="model", failures=5, retry_after_s=60.0))
        with suppress(ValueError), emitter.operation(RouteRequest, candidate_count=1):
            raise ValueError
    lines = [flat(json.loads(line)) for line in (tmp_path / "app.jsonl").read_text().splitlines()]
    for name in ("circuit-breaker-opened", "routing-errors"):
        watch = json.loads(made[f"watcher/{name}.json"])
        *matches, _ = watch["input"]["search"]["request"]["body"]["query"]["bool"]["must"]
        wanted = {key: value for match in matches for key, value in match["match"].items()}
        assert [line for line in lines if wanted.items() <= line.items()], wanted
        for key in wanted:
            assert f'{key.replace(".", "_")}="' in made["loki-rules.yml"]


def flat(line, prefix=""):
    """Return a line with dotted keys, as Elasticsearch and Loki see it."""
    found = {}
    for key, value in line.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return {key: value for key, value in found.items() if not isinstance(value, list)}


def test_an_unknown_schema_is_one_error(generate, settings):
    """A schema that is none is named with a suggestion."""
    add(settings, '[handlers.log]\nschema = "ecx"\n')
    assert "unknown schema 'ecx'; did you mean 'ecs'" in generate("log-alerts", code=2).replace("\n", " ")


def test_a_watch_is_complete(settings):
    """A watch has the four parts of one, compares a number with a number, and posts JSON where ``--webhook`` says."""
    made = files(settings, "log-alerts", webhook="http://127.0.0.1:5055/hook")
    watch = json.loads(made["watcher/circuit-breaker-opened.json"])
    assert set(watch) >= {"trigger", "input", "condition", "actions"}
    action = watch["actions"]["send_alert"]["webhook"]
    assert (action["method"], action["url"]) == ("POST", "http://127.0.0.1:5055/hook")
    assert json.loads(action["body"])["alert"] == "CircuitBreakerOpened"
    request = watch["input"]["search"]["request"]
    assert request["rest_total_hits_as_int"] is True, "ctx.payload.hits.total is compared with a number"
    assert request["body"]["query"]["bool"]["must"][-1] == {"range": {"@timestamp": {"gte": "now-5m"}}}


@pytest.mark.parametrize(("schema", "level"), [("tinyllm", '"level"'), ("ecs", '"\\"log.level\\""')])
def test_alloy_reads_level_and_time_of_the_schema(settings, schema, level):
    """Alloy takes level and time from the keys that lines have, quoted where JMESPath wants it."""
    add(settings, f'[handlers.log]\nformat = "json"\nschema = "{schema}"\n')
    assert f'"level" = {level}' in files(settings, "compose")["config.alloy"]


def test_loki_gets_the_same_alerts(settings):
    """The ruler's groups have an alert for each watch, over the label that Alloy gives to the service's lines."""
    made = files(settings, "log-alerts")
    [group] = yaml.safe_load(made["loki-rules.yml"])["groups"]
    rules = {rule["alert"]: rule for rule in group["rules"]}
    watches = {json.loads(json.loads(text)["actions"]["send_alert"]["webhook"]["body"])["alert"]
               for name, text in made.items() if name.startswith("watcher/")}  # fmt: skip
    assert set(rules) == watches == {"RoutingErrors", "CircuitBreakerOpened"}
    assert rules["RoutingErrors"]["expr"] == (
        'sum(count_over_time({service="tiny-dancer"} | json | name="router.route" | outcome="failure" [5m])) > 10'
    )
    assert '"service" = "tiny-dancer"' in files(settings, "compose")["config.alloy"]


# -- the example -------------------------------------------------------------------------------------------------------


def test_the_example_is_what_is_generated(checkout, tmp_path):
    """``examples/deploy`` is what its own script makes now, byte for byte; a stale file fails, and one too many."""
    example = checkout / "examples" / "deploy"
    environment = {**os.environ, "EVENTCORE": f"{sys.executable} -m eventcore"}
    script = (example / "generate").read_text().replace('"${EVENTCORE:-.venv/bin/eventcore}"', "$EVENTCORE")
    subprocess.run(
        ["sh", "-c", script.replace("$0", str(example / "generate")), "generate", str(tmp_path)],
        check=True,
        env=environment,
        capture_output=True,
        timeout=60,
    )
    made = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ours = {"README.md", "eventcore.toml", "generate"}
    kept = {str(path.relative_to(example)): path.read_bytes() for path in example.rglob("*") if path.is_file()}
    assert sorted(kept.keys() - ours) == sorted(made)
    stale = [name for name in made if made[name] != kept[name]]
    assert not stale, f"make them anew with examples/deploy/generate: {stale}"


@pytest.mark.server
def test_the_example_passes_its_validators(checkout, promtool, amtool):
    """The committed files themselves are accepted by promtool and amtool, and no query in them is without data."""
    example = checkout / "examples" / "deploy"
    for command in (
        [promtool, "check", "config", "prometheus.yml"],
        [promtool, "test", "rules", "rules_test.yml"],
        [amtool, "check-config", "alertmanager.yml"],
        [sys.executable, "-m", "eventcore", "lint", "--config", "eventcore.toml", "rules.yml", "grafana/dashboards"],
    ):
        done = subprocess.run(command, cwd=example, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
