import sys
import textwrap
import types
from pathlib import Path

import pluggy
import pytest

import eventcore as ec
from eventcore.plugins import Plugins
from tests.support.handlers import Collect


class Said(ec.Event, name="said", category="data"):
    pass


class Mine(Collect):
    pass


class Full:
    """A plugin that offers one of everything."""

    @ec.hookimpl
    def eventcore_handlers(self):
        return {"mine": Mine, "by_path": "tests.support.handlers:Collect"}

    @ec.hookimpl
    def eventcore_events(self):
        return [Said, "eventcore.vocabulary:Started", "eventcore.vocabulary:EVENTS"]

    @ec.hookimpl
    def eventcore_packs(self):
        return {"shop": [ec.Counter("said_total", on=Said, help="h")]}

    @ec.hookimpl
    def eventcore_health_checks(self, emitter):
        return [ec.HealthCheck("mine", lambda: ec.HealthResult(ec.HealthStatus.HEALTHY, repr(emitter)))]

    @ec.hookimpl
    def eventcore_routes(self, emitter):
        return [ec.HttpRoute("/mine", lambda request: ec.HttpResponse(request.path.encode()))]

    @ec.hookimpl
    def eventcore_commands(self):
        return {"mine": "somewhere:app"}


def plugin(**hooks):
    """Return a plugin object with these hooks, each a function without arguments."""
    made = types.SimpleNamespace()
    for name, function in hooks.items():
        setattr(made, f"eventcore_{name}", ec.hookimpl(function))
    return made


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a distribution with an entry point, as pip would, for this test alone."""

    def install(name, code, *, entry=None, version="1.0", target=None):
        site = tmp_path / f"site_{name}"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        module = f"module_{name.replace('-', '_')}"
        (info / "entry_points.txt").write_text(f"[eventcore.plugins]\n{entry or name} = {target or module}\n")
        (site / f"{module}.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, module, raising=False)
        return module

    return install


GOOD = """
    import eventcore as ec

    @ec.hookimpl
    def eventcore_handlers():
        return {"acme": "tests.support.handlers:Collect"}
"""


# -- plugins passed in code --------------------------------------------------------------------------------------------


def test_a_plugin_may_be_passed_in_code():
    """A plugin that is not installed is passed to ``configure(plugins=[…])``, a module or an object alike."""
    emitter = ec.configure(plugins=[Full()], handlers={"mine": {}, "by_path": {"min_severity": "error"}})
    assert isinstance(emitter.handler("mine"), Mine)
    assert type(emitter.handler("by_path")) is Collect
    assert emitter.catalog.pack("shop")[0].name == "said_total"


def test_what_a_plugin_contributes_is_at_hand():
    """Handlers, event types, packs, health checks, routes and commands are what the hooks return."""
    found = Plugins(extra=[Full()])
    emitter = ec.Emitter()
    assert found.handler_kinds()["mine"].load() is Mine
    assert Said in found.events()
    assert {"eventcore.started", "eventcore.handler"} <= {event.__event__.name for event in found.events()}
    assert "shop" in found.packs()
    assert found.commands()["mine"] == "somewhere:app"
    checks = {check.name: check for check in found.health_checks(emitter)}
    assert checks["mine"].run().message == repr(emitter)
    routes = {route.path: route for route in found.routes(emitter)}
    assert routes["/mine"].respond(ec.HttpRequest("/mine")).body == b"/mine"


def test_classes_are_imported_when_they_are_used():
    """A handler named by its path is imported when it is used, not when the plugin is found."""
    found = Plugins(extra=[plugin(handlers=lambda: {"heavy": "no_such_module_at_all:Handler"})])
    assert "heavy" in found.handler_kinds()
    with pytest.raises(ec.PluginError, match=r"'heavy'.*'no_such_module_at_all:Handler' cannot be imported"):
        found.handler_class("heavy", "here")


def test_a_hook_that_does_not_exist_is_told():
    """A plugin with a misspelt hook is broken, and says why when it is asked for."""
    misspelt = plugin(handlrs=lambda: None)
    misspelt.__name__ = "misspelt"
    found = Plugins(extra=[misspelt])
    assert "misspelt" in found.broken
    assert "eventcore_handlrs" in str(found.broken["misspelt"])
    assert "misspelt" not in found.names


# -- installed plugins -------------------------------------------------------------------------------------------------


def test_an_installed_plugin_is_found(install):
    """Plugins are found through the entry-point group ``eventcore.plugins``, with name and version."""
    install("acme", GOOD, version="2.5")
    found = Plugins()
    assert "acme" in found.names
    assert found.versions["acme"] == "2.5"
    emitter = ec.configure(handlers={"acme": {"events": ["said"]}})
    emitter.emit(Said())
    assert emitter.flush()
    assert emitter.handler("acme").names == ["said"]


def test_a_broken_plugin_takes_no_other_down(install):
    """One broken plugin must not take the others down; asking for it says what is wrong with it."""
    install("broken", "raise RuntimeError('no licence')")
    install("acme", GOOD)
    emitter = ec.configure(handlers={"acme": {}})
    assert emitter.handler("acme").name == "acme"
    ec.shutdown()
    with pytest.raises(ec.PluginError, match=r"plugin 'broken' cannot be loaded: RuntimeError\('no licence'\)"):
        ec.configure(handlers={"broken": {}})


def test_a_broken_plugin_is_reported(install):
    """A plugin that cannot be loaded is reported through the handlers there are."""
    install("broken", "import a_package_that_is_not_there")
    emitter = ec.configure(handlers={"own": Collect()})
    assert emitter.flush()
    reports = [e for e in emitter.handler("own").got if "broken" in repr(e.event)]
    assert len(reports) == 1
    assert "a_package_that_is_not_there" in repr(reports[0].event)
    assert reports[0].severity >= ec.Severity.WARNING


def test_a_plugin_may_be_blocked(install):
    """``plugins.block`` leaves an installed plugin alone: it is not even imported."""
    module = install("acme", GOOD)
    Path("eventcore.toml").write_text('[plugins]\nblock = ["acme"]\n[handlers.own]\nuse = "acme"\n')
    with pytest.raises(ec.PluginError, match=r"eventcore\.toml.*no installed plugin offers a handler 'acme'"):
        ec.configure()
    assert module not in sys.modules


def test_a_blocked_plugin_may_be_replaced_in_code(install):
    """A blocked plugin's kinds may be offered by another."""
    install("acme", GOOD)
    Path("eventcore.toml").write_text('[plugins]\nblock = ["acme"]\n')
    emitter = ec.configure(plugins=[plugin(handlers=lambda: {"acme": Mine})], handlers={"acme": {}})
    assert isinstance(emitter.handler("acme"), Mine)


def test_blocking_what_is_not_installed_is_an_error(install):
    """Blocking a plugin that is not installed is an error that names the likely one."""
    install("acme", GOOD)
    Path("eventcore.toml").write_text('[plugins]\nblock = ["acne"]\n')
    with pytest.raises(ec.PluginError, match=r"block.*'acne', which is not installed; did you mean 'acme'\?"):
        ec.configure()


def test_two_packages_of_one_plugin_name_are_an_error(install):
    """Two installed packages that offer one plugin name are an error that names both targets and the remedy."""
    install("acme", GOOD)
    install("other", GOOD, entry="acme")
    with pytest.raises(ec.PluginError, match=r"two installed packages offer .* 'acme': .*module_.*module_.*uninstall"):
        Plugins()


def test_two_plugins_that_offer_one_kind_are_an_error(install):
    """Two plugins that offer the same kind are an error that names both, the kind and the remedy."""
    install("acme", GOOD)
    install("other", GOOD)
    with pytest.raises(ec.PluginError, match=r"plugins '(acme|other)' and '(acme|other)' both offer 'acme'.*block one"):
        ec.configure(handlers={"acme": {}})


# -- handlers of plugins -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [Said, dict, "collections:OrderedDict", print, 5])
def test_a_handler_is_a_handler_class(target):
    """A kind that is no ``ec.Handler`` class is an error that names kind and plugin."""
    made = plugin(handlers=lambda: {"odd": target})
    made.__name__ = "odd_plugin"
    with pytest.raises(ec.PluginError, match=r"handler 'odd' of plugin 'odd_plugin': .* is no ec\.Handler class"):
        ec.configure(plugins=[made], handlers={"odd": {}})


@pytest.mark.parametrize(
    "target",
    ["tests.support.handlers:Missing", "tests.support.nowhere:Collect", "no such path", "", "a:b:c", "module_bad:X"],
)
def test_a_path_that_leads_nowhere_is_an_error(target, tmp_path, monkeypatch):
    """A path that cannot be imported, for whatever reason, is an error that names kind, plugin and path."""
    (tmp_path / "module_bad.py").write_text("raise RuntimeError('cannot be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    made = plugin(handlers=lambda: {"odd": target})
    made.__name__ = "odd_plugin"
    with pytest.raises(ec.PluginError, match=r"handler 'odd' of plugin 'odd_plugin'.* cannot be imported"):
        ec.configure(plugins=[made], handlers={"odd": {}})


def test_a_missing_library_names_its_extra(install):
    """A handler whose library is missing says which extra to install."""
    install(
        "eventcore_acme",
        """
        import eventcore as ec

        @ec.hookimpl
        def eventcore_handlers():
            return {"acme": "eventcore_acme_heavy:Handler"}
        """,
    )
    heavy = Path(sys.path[0]) / "eventcore_acme_heavy.py"
    heavy.write_text("import a_library_that_is_not_there\n")
    with pytest.raises(
        ec.PluginError, match=r"needs the package 'a_library_that_is_not_there'.*pip install 'eventcore\["
    ):
        ec.configure(handlers={"acme": {}})


def test_a_hook_that_raises_names_its_plugin():
    """A hook that raises, or returns what it should not, is an error that names plugin and hook."""

    def raises():
        raise RuntimeError("no licence")

    for broken in (raises, lambda: ["mine"]):
        made = plugin(handlers=broken)
        made.__name__ = "broken_plugin"
        with pytest.raises(
            ec.PluginError, match=r"'broken_plugin'.*eventcore_handlers|eventcore_handlers.*broken_plugin"
        ):
            ec.configure(plugins=[made], handlers={"own": Collect()})


def test_a_hook_may_return_nothing():
    """A hook that has nothing to offer may return None."""
    ec.configure(plugins=[plugin(handlers=lambda: None, packs=lambda: None)], handlers={"own": Collect()})


def test_pluggy_is_not_called_per_event(monkeypatch):
    """Plugins are registered, validated and ordered by pluggy, which is not called per event."""
    calls = []
    emitter = ec.configure(plugins=[Full()], handlers={"mine": {"delivery": "inline"}})
    real = pluggy._hooks.HookCaller.__call__
    monkeypatch.setattr(
        pluggy._hooks.HookCaller, "__call__", lambda self, **kw: (calls.append(self.name), real(self, **kw))[1]
    )
    for _ in range(10):
        emitter.emit(Said())
    assert len(emitter.handler("mine").got) == 11
    assert calls == []
