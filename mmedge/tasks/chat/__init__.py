"""A model's own chat template on the device: rendered as transformers renders it, without transformers."""
