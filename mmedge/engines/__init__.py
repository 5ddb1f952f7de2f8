"""Engines: whatever turns token ids into token ids, and the speaker that asks any of them."""
