"""Teachers: whoever writes chains of thought and evaluates them, and the store that keeps what they wrote."""
