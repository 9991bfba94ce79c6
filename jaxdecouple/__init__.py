"""Decoupled training: a network cut by depth into stages that run on different batches at once."""

import lazy_loader

# What is exported stands in __init__.pyi. Loading on first use keeps `jaxdecouple.schedules` free of JAX.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
