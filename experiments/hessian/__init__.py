"""The local Hessian in pictures (docs/local-hessian.md)."""
