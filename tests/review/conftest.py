"""The page needs the extra `serve`, which the environment of optimum does not have."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("starlette") else ["test_page.py", "test_browser.py"]
