"""Training by other people's frameworks, which `make test-all` installs."""
