"""A cluster emulated on one machine: predictions are compared with measurements on it."""
