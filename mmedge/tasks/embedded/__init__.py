"""The embedded task: arithmetic word problems written by a grammar, so that the whole chain runs offline."""
