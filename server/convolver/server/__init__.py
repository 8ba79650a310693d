"""The service: `convolver-server`."""
