"""A package outside mmedge that adds one entry to each registry, one file each; see `tests/end_to_end/test_plugin.py`."""
