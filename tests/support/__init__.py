"""Real counterparts for tests: receivers and exporters of others, in process or importable by a program under test."""
