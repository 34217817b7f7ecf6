"""What the engine that matches words declares."""

from __future__ import annotations

from prefork.engines.declaration import Declaration

MATCHER = Declaration(family="")
