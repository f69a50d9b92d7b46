"""Seeing the gradient: what a step tells beyond its line, and where that goes."""
