"""The read side over HTTP: a WSGI server of few threads, and the application on it."""

from tombsync.web.app import build_app
from tombsync.web.coverage import coverage_blueprint
from tombsync.web.server import WebServer

__all__ = ["WebServer", "build_app", "coverage_blueprint"]
