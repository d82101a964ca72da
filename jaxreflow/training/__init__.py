"""One update: losses, optimizer, adapters and augmentation as pure functions. Nothing here reads files or options."""
