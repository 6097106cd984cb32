"""The scripts' main() run inside the tests' process."""
import signal

import cli


def exit_status(main):
    """What `main` would end its process with, run as a script runs it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        cli.run(main)
    except SystemExit as end:
        return end.code
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0
