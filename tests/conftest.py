"""What every test run needs, however it was started."""

import signal

# A runner in the background ignores SIGINT, and its children would inherit that: the tests of
# Ctrl-C need the default.
signal.signal(signal.SIGINT, signal.default_int_handler)
