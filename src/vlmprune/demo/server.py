"""Serves the page until the process is told to stop."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI

from vlmprune.demo.page import Page, dress
from vlmprune.demo.uploads import MOST_BYTES

_WAITING = 32  # visitors at most who wait for an answer
_PATIENCE = 2  # seconds that open connections have when the server is stopped


@contextmanager
def upload_folder() -> Iterator[Path]:
    """A folder for all that is uploaded; it is deleted with what is in it when the block ends."""
    with tempfile.TemporaryDirectory(prefix="vlmprune-demo-") as name:
        os.environ["GRADIO_TEMP_DIR"] = name
        try:
            yield Path(name)
        finally:
            del os.environ["GRADIO_TEMP_DIR"]


def build_app(page: Page) -> FastAPI:
    """The application, to be run by any ASGI server in one process."""
    blocks = page.blocks().queue(max_size=_WAITING)
    hidden = {"footer_links": [], "run_history": False, "show_error": False, "ssr_mode": False, "mcp_server": False}
    return gr.mount_gradio_app(FastAPI(), blocks, path="", max_file_size=MOST_BYTES, **hidden, **dress())


def run(app: FastAPI, at: socket.socket) -> None:
    """Serve until Ctrl-C."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_PATIENCE)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once it has stopped
        uvicorn.Server(config).run(sockets=[at])
