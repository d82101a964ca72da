"""Shapes and types on public signatures are checked here, and only here: the package itself does not pay for it."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests run many small programs once each: compiling them fast beats running them fast.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

from jaxtyping import install_import_hook

install_import_hook("jaxreflow", "beartype.beartype")
