"""The version; read by setup.cfg, manifests and cards, none of which may import the whole package."""

__version__ = "0.1.0"
