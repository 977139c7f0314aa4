"""What eventcore generates, eventcore lint accepts."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from eventcore.cli import app

PACKS = ("--pack", "tiny_dancer", "--pack", "router")


@pytest.mark.parametrize("what", ["grafana", "prometheus-rules"])
def test_what_is_generated_resolves(tmp_path, what):
    """Every panel and rule that is generated names only what the catalog knows, and its query can return data."""
    made = CliRunner().invoke(app, ["generate", what, *PACKS, "--output", str(tmp_path)])
    assert made.exit_code == 0, made.output
    result = CliRunner().invoke(app, ["lint", *PACKS, str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("0 findings in ")


def test_committed_deployments_resolve(checkout):
    """Every panel and rule in ``examples/deploy`` does, too; what is LogQL there is left out, and said to be."""
    result = CliRunner().invoke(app, ["lint", *PACKS, str(checkout / "examples" / "deploy")])
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("; left out: 2 expressions of LogQL\n")
