"""Packs and instruments as the configuration wants them: other buckets, other names."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from eventcore.errors import ConfigurationError, InstrumentError, did_you_mean
from eventcore.instruments import Histogram

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventcore.instruments import Instrument

__all__ = ["Adapted"]


class Adapted:
    """Applies ``buckets`` and ``rename``, and knows in the end which of their names there were none of."""

    def __init__(self, buckets: Mapping[str, tuple[float, ...]], rename: Mapping[str, str]) -> None:
        self._buckets = buckets
        self._rename = rename
        self._of_packs: set[str] = set()
        self._histograms: set[str] = set()

    def with_buckets(self, instrument: Instrument) -> Instrument:
        """Return the instrument, with other buckets if its name has some."""
        if isinstance(instrument, Histogram):
            self._histograms.add(instrument.name)
            if instrument.name in self._buckets:
                try:
                    return dataclasses.replace(instrument, buckets=self._buckets[instrument.name])
                except InstrumentError as error:
                    raise ConfigurationError(f"option 'buckets': {error}") from None
        return instrument

    def of_pack(self, instrument: Instrument) -> Instrument:
        """Return an instrument of a pack, with other buckets and another name if it has some."""
        self._of_packs.add(instrument.name)
        adapted = self.with_buckets(instrument)
        name = self._rename.get(instrument.name)
        try:
            return adapted if name is None else dataclasses.replace(adapted, name=name)
        except InstrumentError as error:
            raise ConfigurationError(f"option 'rename': {error}") from None

    def check_used(self, *, knows_code: bool) -> None:
        """Raise ConfigurationError for a name that no metric has.

        Where ``knows_code`` is false, instruments that an application gives to ``configure()`` are not at hand: buckets
        for a name that no pack has may be theirs.
        """
        for option, given, known, what in (
            ("buckets", self._buckets, self._histograms, "no histogram of this handler"),
            ("rename", self._rename, self._of_packs, "no metric of its packs"),
        ):
            for name in given:
                if name not in known and (knows_code or option == "rename" or name in self._of_packs):
                    raise ConfigurationError(f"option {option!r}: {name!r} is {what}{did_you_mean(name, known)}")
