"""Measuring on another machine over SSH, with nothing but Python on it."""
