"""Generated from the catalog: dashboards, rules, deployments, references; and a linter for those written by hand."""
