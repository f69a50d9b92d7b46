"""Helper programs and libraries of the tests."""
