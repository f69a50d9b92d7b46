"""`python -m distgrad` is the command line."""

from distgrad.cli import main

main(prog_name="distgrad")
