"""The read side over HTTP: a WSGI server of few threads, and the application on it."""

from tombsync.web.app import build_app
from tombsync.web.live import Agent
from tombsync.web.page import status_page
from tombsync.web.server import WebServer

__all__ = ["Agent", "WebServer", "build_app", "status_page"]
