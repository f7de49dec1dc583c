"""Inputs that nobody should give, by structure and by bytes, to every command that reads files.

Each outcome must be *accepted*, or *refused* with exactly one printable line of at most 400 characters, exit code 2 and
nothing left behind, within 20 s and 3 GB. `python -m tests.fuzz --n 10000 --seed S` prints a table by kind of input and
outcome, and the tracebacks by place; `test_fuzz.py` runs some of it by fixed seeds.
"""
