import json
import socket
from pathlib import Path

import pytest

import eventcore as ec
from tests.support.acme import Acme, Mine
from tests.support.handlers import Collect


def option(emitter, name="mine"):
    """Return the configuration of a handler."""
    return emitter.handler(name).config


# -- precedence --------------------------------------------------------------------------------------------------------


def test_code_wins_over_environment_over_dotenv_over_file_over_defaults(configure, write, monkeypatch):
    """Precedence: code > environment > ``.env`` > ``eventcore.toml`` > defaults."""
    write('service = "file"\nversion = "file"\nenvironment = "file"\nshutdown_timeout_s = 7')
    Path(".env").write_text("EVENTCORE_SERVICE=dotenv\nEVENTCORE_VERSION=dotenv\nEVENTCORE_ENVIRONMENT=dotenv\n")
    monkeypatch.setenv("EVENTCORE_SERVICE", "environment")
    monkeypatch.setenv("EVENTCORE_VERSION", "environment")
    emitter = configure(service="code", handlers={"mine": {}})
    resource = emitter.resource
    assert (resource.service, resource.version, resource.environment) == ("code", "environment", "dotenv")
    assert emitter.shutdown_timeout_s == 7.0
    assert emitter.strict is False


def test_the_same_holds_for_each_option_of_a_handler(configure, write, monkeypatch):
    """Sources are merged option by option: each says what it says, and the highest wins."""
    write('[handlers.mine]\ncolour = "file"\nlevel = 7\nformat = "file"\nmin_severity = "warning"\n')
    Path(".env").write_text("EVENTCORE_HANDLERS__MINE__COLOUR=dotenv\nEVENTCORE_HANDLERS__MINE__LEVEL=8\n")
    monkeypatch.setenv("EVENTCORE_HANDLERS__MINE__COLOUR", "environment")
    emitter = configure(handlers={"mine": {"format": "code"}})
    config = option(emitter)
    assert (config.colour, config.level, config.format) == ("environment", 8, "code")
    assert config.min_severity is ec.Severity.WARNING


def test_the_same_holds_for_services(configure, write, monkeypatch):
    """A service's table is merged like any other."""
    write("[svc]\nport = 70000\n[handlers.mine]\n")
    monkeypatch.setenv("EVENTCORE_SVC__PORT", "0")
    assert configure().services["svc"].config.port == 0


def test_eventcore_toml_wins_over_pyproject_toml(configure, write):
    """``eventcore.toml`` is read, or else ``[tool.eventcore]`` in ``pyproject.toml``."""
    pyproject = '[project]\nname = "x"\n[tool.eventcore]\nservice = "pyproject"\n[tool.eventcore.handlers.mine]\n'
    write(pyproject, "pyproject.toml", block='[tool.eventcore.plugins]\nblock = ["log", "metric", "http"]\n')
    write('service = "own"\n[handlers.mine]')
    assert configure().resource.service == "own"
    ec.shutdown()
    Path("eventcore.toml").unlink()
    assert configure().resource.service == "pyproject"


def test_a_pyproject_without_our_table_is_left_alone(configure, write):
    """A ``pyproject.toml`` that says nothing of eventcore is none of our business."""
    Path("eventcore.toml").unlink()
    Path("pyproject.toml").write_text('[project]\nname = "x"\n')
    emitter = ec.configure(handlers={"own": Collect()})
    assert emitter.resource.service == "unknown_service"


def test_a_file_may_be_named(configure, write, monkeypatch):
    """The file may be named in code, or by ``EVENTCORE_CONFIG``; code wins."""
    write('service = "one"\n[handlers.mine]', "one.toml")
    write('service = "two"\n[handlers.mine]', "two.toml")
    monkeypatch.setenv("EVENTCORE_CONFIG", "two.toml")
    assert configure().resource.service == "two"
    ec.shutdown()
    assert configure(config="one.toml").resource.service == "one"


def test_a_pyproject_may_be_named(configure, write):
    """A ``pyproject.toml`` that is named is read at its ``[tool.eventcore]``."""
    Path("there").mkdir()
    write(
        '[project]\nname = "x"\n[tool.eventcore]\nservice = "there"\n[tool.eventcore.handlers.mine]\n',
        "there/pyproject.toml",
        block='[tool.eventcore.plugins]\nblock = ["log", "metric", "http"]\n',
    )
    assert configure(config=Path("there/pyproject.toml")).resource.service == "there"


def test_a_handlers_name_is_its_kind_unless_use_says_otherwise(configure, write):
    """The name of a handler's table is its kind unless ``use`` says otherwise, so one kind may be used twice."""
    write('[handlers.mine]\n[handlers.oncall]\nuse = "mine"\nevents = ["circuit.*"]\n')
    emitter = configure()
    assert [handler.name for handler in emitter.handlers] == ["mine", "oncall"]
    assert option(emitter, "oncall").events == ("circuit.*",)


def test_handlers_may_be_given_as_objects(configure, write):
    """Code may give ready handlers beside those of the file."""
    write("[handlers.mine]\n")
    own = Collect()
    emitter = configure(handlers={"own": own})
    assert emitter.handlers == (emitter.handler("mine"), own)


def test_a_whole_table_may_come_as_json(configure, write, monkeypatch):
    """A variable may hold a whole table as JSON."""
    monkeypatch.setenv("EVENTCORE_HANDLERS", '{"mine": {"level": 3}}')
    assert option(configure()).level == 3


def test_names_of_variables_may_be_lower_case(configure, write, monkeypatch):
    """Names of variables are read in any case, as is usual."""
    monkeypatch.setenv("eventcore_handlers__mine__level", "4")
    assert option(configure()).level == 4


def test_blocked_plugins_may_be_named_by_a_variable(monkeypatch):
    """``plugins.block`` may come from the environment or ``.env`` as well as from the file."""
    Path(".env").write_text('EVENTCORE_PLUGINS__BLOCK=["log", "metric", "http"]\n')
    assert ec.configure(plugins=[Acme()], handlers={"log": {"colour": "blue"}}).handler("log").config.colour == "blue"
    ec.shutdown()
    Path(".env").unlink()
    monkeypatch.setenv("EVENTCORE_PLUGINS__BLOCK", '["log", "metric", "http"]')
    assert ec.configure(plugins=[Acme()], handlers={"log": {"colour": "red"}}).handler("log").config.colour == "red"


def test_a_shared_dotenv_is_fine(configure, write):
    """Other programs' variables in ``.env`` are none of our business."""
    Path(".env").write_text("DATABASE_URL=postgres://x\nSECRET_KEY=abc\nEVENTCORE_SERVICE=mine\n")
    assert configure(handlers={"mine": {}}).resource.service == "mine"


def test_variables_of_the_tests_are_no_settings(configure, write, monkeypatch):
    """``EVENTCORE_DATA`` and ``EVENTCORE_REQUIRE_SERVERS`` belong to the test suite and are no settings."""
    monkeypatch.setenv("EVENTCORE_DATA", "somewhere")
    monkeypatch.setenv("EVENTCORE_REQUIRE_SERVERS", "0")
    configure(handlers={"mine": {}})


# -- mistakes: each message names file or variable, key, and remedy ----------------------------------------------------


def message(configure, **options):
    """Return the text of the ConfigurationError that ``configure`` raises."""
    with pytest.raises(ec.ConfigurationError) as caught:
        configure(**options)
    assert ec.get_emitter().resource.service == "unknown_service", "nothing is configured"
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('servce = "x"', ["eventcore.toml", "'servce'", "did you mean 'service'"]),
        ("[handler.mine]", ["eventcore.toml", "'handler'", "did you mean 'handlers'"]),
        ("[handlers.mine]\ncolor = 'x'", ["eventcore.toml", "handlers.mine", "'color'", "did you mean 'colour'"]),
        ("[handlers.mein]", ["eventcore.toml", "handlers.mein", "no installed plugin offers", "did you mean 'mine'"]),
        ("[handlers.x]\nuse = 'mein'", ["eventcore.toml", "handlers.x", "'mein'", "did you mean 'mine'"]),
        ("[handlers.mine]\nlevel = 'x'", ["eventcore.toml", "handlers.mine", "'level'", "'x'", "integer"]),
        (
            "[handlers.mine]\nlevel = 10",
            ["eventcore.toml", "handlers.mine", "'level'", "10", "less than or equal to 9"],
        ),
        ("[handlers.mine]\nmin_severity = 'loud'", ["eventcore.toml", "'min_severity'", "'loud'", "warning"]),
        ("[handlers.mine]\nmin_severity = 'eror'", ["eventcore.toml", "did you mean 'error'"]),
        ("[handlers.mine]\ncolour = 'refused'", ["eventcore.toml", "handlers.mine", "no such colour; take grey"]),
        ("[handlers]\nmine = 3", ["eventcore.toml", "handlers", "mine", "dictionary"]),
        ("handlers = 3", ["eventcore.toml", "handlers", "3"]),
        ("shutdown_timeout_s = 'soon'", ["eventcore.toml", "shutdown_timeout_s", "'soon'", "number"]),
        ("shutdown_timeout_s = 0", ["eventcore.toml", "shutdown_timeout_s", "0", "greater than 0"]),
        ("svc = 3", ["eventcore.toml", "svc", "3"]),
        ("[svc]\nport = 'x'", ["eventcore.toml", "svc", "'port'", "'x'", "integer"]),
        ("[svc]\nprot = 1", ["eventcore.toml", "svc", "'prot'", "did you mean 'port'"]),
    ],
)
def test_a_mistake_in_the_file_names_file_key_and_remedy(configure, write, text, parts):
    """A mistake in the file is one clear error naming file, key and what was expected."""
    write(text)
    told = message(configure)
    assert all(part in told for part in parts), told
    assert "environment variable" not in told


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a = \n", ["eventcore.toml", "TOML", "line 1"]),
        ("service = 'x'\nservice = 'y'\n", ["eventcore.toml", "TOML"]),
        ("\xff", ["eventcore.toml"]),
        ("[plugins]\nblok = ['log']\n", ["eventcore.toml", "'blok'", "did you mean 'block'"]),
        ("plugins = 3\n", ["eventcore.toml", "plugins", "3"]),
        ("[plugins]\nblock = ['lgo']\n", ["block", "'lgo'", "not installed", "did you mean 'log'"]),
        ("[plugins]\nblock = [3]\n", ["eventcore.toml", "plugins", "block", "3"]),
    ],
)
def test_a_broken_file_is_told_as_such(text, parts):
    """A file that is no TOML, or whose plugin table is wrong, is an error that says so, not something else."""
    Path("eventcore.toml").write_bytes(text.encode("latin-1"))
    told = message(ec.configure)
    assert all(part in told for part in parts), told
    assert "JSON" not in told


@pytest.mark.parametrize("table", ["tool = 3", "[tool]\neventcore = 3"])
def test_a_pyproject_with_a_wrong_table_is_told_as_such(table):
    """A ``[tool.eventcore]`` that is no table is an error that names the file, never a crash."""
    Path("pyproject.toml").write_text(table)
    if "eventcore" in table:
        assert "pyproject.toml" in message(ec.configure)
    else:
        ec.configure(handlers={"own": Collect()})


def test_a_mistake_in_pyproject_names_its_table(configure, write):
    """A mistake in ``pyproject.toml`` names it, and the table as it is written there."""
    Path("eventcore.toml").unlink()
    write(
        "[tool.eventcore.handlers.mine]\nlevel = 'x'\n",
        "pyproject.toml",
        block='[tool.eventcore.plugins]\nblock = ["log", "metric", "http"]\n',
    )
    told = message(configure)
    assert "pyproject.toml" in told
    assert "tool.eventcore.handlers.mine" in told


@pytest.mark.parametrize("how", ["code", "variable"])
def test_a_file_that_is_missing_is_named(how, monkeypatch):
    """A configuration file that was named and is not there is an error that names it."""
    if how == "variable":
        monkeypatch.setenv("EVENTCORE_CONFIG", "gone.toml")
    told = message(ec.configure, **({"config": "gone.toml"} if how == "code" else {}))
    assert told.endswith("gone.toml: no such configuration file")
    assert "JSON" not in told


VARIABLES = [
    ("EVENTCORE_SERVCE", "x", ["'servce'", "did you mean 'service'"]),
    ("EVENTCORE_SHUTDOWN_TIMEOUT_S", "soon", ["shutdown_timeout_s", "'soon'", "number"]),
    ("EVENTCORE_HANDLERS__MINE__LEVEL", "x", ["'level'", "'x'", "integer"]),
    ("EVENTCORE_HANDLERS__MINE__COLOR", "x", ["'color'", "did you mean 'colour'"]),
    ("EVENTCORE_HANDLERS__MINE__MIN_SEVERITY", "loud", ["'min_severity'", "'loud'"]),
    ("EVENTCORE_HANDLERS__MEIN__LEVEL", "1", ["'mein'", "did you mean 'mine'"]),
    ("EVENTCORE_SVC__PORT", "x", ["'port'", "'x'", "integer"]),
    ("EVENTCORE_HANDLERS", "{mine", ["JSON"]),
    ("EVENTCORE_HANDLERS", '{"mine": {"level": "x"}}', ["'level'", "'x'", "integer"]),
    ("EVENTCORE_PLUGINS__BLOCK", "log", ["log", "JSON list"]),
]


@pytest.mark.parametrize("case", VARIABLES, ids=lambda case: "=".join(case[:2]))
def test_a_wrong_variable_is_named(configure, write, monkeypatch, case):
    """A mistake in the environment names the variable, the key and what was expected."""
    name, value, parts = case
    write("[handlers.mine]\n")
    monkeypatch.setenv(name, value)
    told = message(configure)
    assert name in told
    assert all(part in told for part in parts), told
    assert "eventcore.toml" not in told


@pytest.mark.parametrize("case", VARIABLES, ids=lambda case: "=".join(case[:2]))
def test_a_wrong_variable_in_dotenv_is_named(configure, write, case):
    """A mistake in ``.env`` names it, the variable, the key and what was expected."""
    name, value, parts = case
    write("[handlers.mine]\n")
    Path(".env").write_text(f"{name}='{value}'\n")
    told = message(configure)
    assert name in told
    assert ".env" in told
    assert all(part in told for part in parts), told


def test_each_mistake_is_blamed_on_its_own_source(configure, write, monkeypatch):
    """Where a table comes from several sources, each mistake names the one that made it."""
    write("[handlers.mine]\nlevel = 'x'\n")
    monkeypatch.setenv("EVENTCORE_HANDLERS__MINE__FORMAT", "json")
    told = message(configure)
    assert "eventcore.toml" in told
    assert "EVENTCORE_HANDLERS__MINE__FORMAT" not in told
    told = message(configure, handlers={"mine": {"color": "x"}})
    assert "configure()" in told
    assert "eventcore.toml" in told, "two mistakes, two sources"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"servce": "x"}, ["configure()", "'servce'", "did you mean 'service'"]),
        ({"handlers": {"mine": {"level": "x"}}}, ["configure()", "handlers.mine", "'level'", "'x'"]),
        ({"handlers": {"mine": {"levle": 1}}}, ["configure()", "handlers.mine", "'levle'", "did you mean 'level'"]),
        ({"handlers": {"mein": {}}}, ["configure()", "'mein'", "did you mean 'mine'"]),
        ({"handlers": {"mine": 3}}, ["configure()", "mine", "3"]),
        ({"handlers": {"mine": Mine}}, ["configure()", "mine", "instance"]),
        ({"svc": {"port": "x"}}, ["configure()", "svc", "'port'"]),
        ({"svc": 3}, ["configure()", "svc", "3"]),
        ({"shutdown_timeout_s": -1}, ["configure()", "shutdown_timeout_s", "-1"]),
    ],
)
def test_a_mistake_in_code_is_told_as_such(configure, write, options, parts):
    """A mistake in the call names the call, the key and what was expected."""
    told = message(configure, **options)
    assert all(part in told for part in parts), told


def test_a_secret_is_not_shown_in_a_message(configure, write, monkeypatch):
    """A message does not show the other values of a table, which may be secrets."""
    monkeypatch.setenv("EVENTCORE_HANDLERS", json.dumps({"mine": {"colour": "s3cret", "level": "x"}}))
    assert "s3cret" not in message(configure)


# -- the guides' variables ---------------------------------------------------------------------------------------------


def test_log_level_and_format_are_aliases(configure, write, monkeypatch):
    """``LOG_LEVEL`` and ``LOG_FORMAT`` of the guides set the log handler's options, in any case."""
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("LOG_FORMAT", "JSON")
    config = option(configure(), "log")
    assert (config.min_severity, config.format) == (ec.Severity.DEBUG, "json")


def test_an_alias_is_weaker_than_our_own_variable_and_than_code(configure, write, monkeypatch):
    """An alias counts where neither code nor ``EVENTCORE_`` says otherwise; it is stronger than the file."""
    write("[handlers.log]\nmin_severity = 'error'\nformat = 'file'\ncolour = 'file'\n")
    monkeypatch.setenv("LOG_LEVEL", "debug")
    monkeypatch.setenv("LOG_FORMAT", "json")
    assert option(configure(), "log").min_severity is ec.Severity.DEBUG
    ec.shutdown()
    monkeypatch.setenv("EVENTCORE_HANDLERS__LOG__MIN_SEVERITY", "warning")
    config = option(configure(handlers={"log": {"format": "code"}}), "log")
    assert (config.min_severity, config.format, config.colour) == (ec.Severity.WARNING, "code", "file")


def test_an_alias_makes_no_log_handler_where_others_are_configured(configure, write, monkeypatch):
    """``LOG_LEVEL`` does not add a log handler to a program that has chosen its handlers without one."""
    monkeypatch.setenv("LOG_LEVEL", "debug")
    assert [h.name for h in configure(handlers={"mine": {}}).handlers] == ["mine"]


def test_metrics_may_be_enabled(configure, write, monkeypatch):
    """``ENABLE_METRICS=true`` adds a metric handler and the HTTP server, whose port ``METRICS_PORT`` sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("ENABLE_METRICS", "true")
    monkeypatch.setenv("METRICS_PORT", str(port))
    emitter = configure(handlers={"mine": {}})
    assert [handler.name for handler in emitter.handlers] == ["mine", "metric"]
    assert emitter.services["http"].port == port


def test_enabling_metrics_does_not_silence_the_log(configure, write, monkeypatch):
    """``ENABLE_METRICS=true`` alone adds metrics to the default log, it does not replace it."""
    monkeypatch.setenv("ENABLE_METRICS", "true")
    assert {handler.name for handler in configure(http={"port": 0}).handlers} == {"log", "metric"}


@pytest.mark.parametrize("value", ["false", "0", "", "no"])
def test_metrics_stay_off_unless_told(configure, write, monkeypatch, value):
    """Only ``true`` enables metrics; ``METRICS_PORT`` alone starts nothing."""
    monkeypatch.setenv("ENABLE_METRICS", value)
    monkeypatch.setenv("METRICS_PORT", "1")
    emitter = configure(handlers={"mine": {}})
    assert [handler.name for handler in emitter.handlers] == ["mine"]
    assert not emitter.services


def test_metrics_that_are_configured_are_not_added_again(configure, write, monkeypatch):
    """``ENABLE_METRICS=1`` is ``true``, and adds no second metric handler to one that has another name."""
    monkeypatch.setenv("ENABLE_METRICS", "1")
    emitter = configure(handlers={"numbers": {"use": "metric"}}, http={"port": 0})
    assert [handler.name for handler in emitter.handlers] == ["numbers"]


@pytest.mark.parametrize(("name", "value"), [("LOG_LEVEL", "loud"), ("METRICS_PORT", "abc"), ("METRICS_PORT", "99999")])
@pytest.mark.parametrize("in_dotenv", [False, True])
def test_a_wrong_alias_is_named(configure, write, monkeypatch, name, value, in_dotenv):  # noqa: PLR0917 - fixtures
    """A mistake in one of the guides' variables names that variable."""
    if in_dotenv:
        Path(".env").write_text(f"{name}={value}\nENABLE_METRICS=true\n")
    else:
        monkeypatch.setenv(name, value)
        monkeypatch.setenv("ENABLE_METRICS", "true")
    told = message(configure, handlers={"log": {}})
    assert name in told
    assert value in told
    assert "configure()" not in told


def test_aliases_may_stand_in_dotenv(configure, write, monkeypatch):
    """The guides' variables may stand in ``.env``; the environment wins there, too."""
    Path(".env").write_text("LOG_LEVEL=debug\nLOG_FORMAT=json\n")
    monkeypatch.setenv("LOG_FORMAT", "console")
    config = option(configure(), "log")
    assert (config.min_severity, config.format) == (ec.Severity.DEBUG, "console")
