"""Models from a hub: names (names.py), what is on this machine (store.py), downloading (download.py).

The transfer itself is huggingface-hub's. Once a model is here nothing needs a network.
"""

from .download import Pulled, pull
from .store import Stored, find, located, remove, stored

__all__ = ["Pulled", "Stored", "find", "located", "pull", "remove", "stored"]
