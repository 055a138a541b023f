"""`python -m tombsync` is the same as `tombsync`."""

from tombsync.cli.main import main

if __name__ == "__main__":
    main()
