"""The demo: nodes on this machine that hide, deliver and confirm, with nothing installed and nothing kept."""
