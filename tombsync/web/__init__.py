"""The read side over HTTP: a WSGI server of few threads, and the application on it."""

from tombsync.web.api import TombstonePage, api_blueprint
from tombsync.web.app import build_app
from tombsync.web.auth import Auth
from tombsync.web.coverage import coverage_blueprint
from tombsync.web.files import files_blueprint
from tombsync.web.live import Agent, Ask
from tombsync.web.page import status_page
from tombsync.web.server import WebServer
from tombsync.web.turns import Turns

__all__ = [
    "Agent",
    "Ask",
    "Auth",
    "TombstonePage",
    "Turns",
    "WebServer",
    "api_blueprint",
    "build_app",
    "coverage_blueprint",
    "files_blueprint",
    "status_page",
]
