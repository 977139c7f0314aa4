"""Health checks of a process and its surroundings: memory, disk space, files, external services."""
