"""Serving bundles over HTTP, in OpenAI's protocol: `mmedge serve`. Needs the extra `serve`; nothing else imports this room."""
