"""All fuzz targets, by name."""

from __future__ import annotations

from tests.fuzz import files, streams, words

TARGETS = {target.name: target for target in (*words.targets(), *streams.targets(), *files.targets())}
