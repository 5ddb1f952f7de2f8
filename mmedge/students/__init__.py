"""Students in torch: loading, config dialects, packed passes, adapters, bitsandbytes, saving."""
