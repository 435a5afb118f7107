"""One logger a module, called like it; each module has its class as LOGGER."""
