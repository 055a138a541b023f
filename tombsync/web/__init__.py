"""The read side over HTTP: a WSGI server of few threads, and the application on it."""

from tombsync.web.app import build_app
from tombsync.web.auth import Auth
from tombsync.web.server import WebServer

__all__ = ["Auth", "WebServer", "build_app"]
