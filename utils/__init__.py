import sys

if sys.version_info < (3, 11):  # noqa: UP036 (older ones get here)
    from utils.run.ending import go_elsewhere

    go_elsewhere("is older than Python 3.11", "install one, and requirements.txt in it")
