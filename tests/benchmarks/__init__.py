"""Measurements beside peers; ``make bench`` prints one table."""
