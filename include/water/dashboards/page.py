"""The live board's web application; created in the api-server when somebody opens the board (see plugins/)."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI

from include.streams.pages.app import page_app
from include.streams.pages.reading import read_only
from include.water.dashboards.board import read_board

FOLDER = Path(__file__).parent / "live_board"


def make_app() -> FastAPI:
    return page_app(FOLDER, _read)


def _read() -> dict[str, Any]:
    with read_only() as connection:
        return read_board(connection)
