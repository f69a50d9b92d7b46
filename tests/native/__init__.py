"""The compiled core's own sources, without Python and TensorFlow: sums by threads and processes, under sanitizers.

harness.cpp          what is run: ranks, rounds, and the results that they must find
harness.py           builds and runs it
test_core.py         under ThreadSanitizer, and under AddressSanitizer with UndefinedBehaviorSanitizer
test_compilers.py    other compilers and processors, and no warnings
mutations.py         a command: faults that are put into the core, each of which the harness must notice
under_asan.py        a command: tests of workers with a core that AddressSanitizer watches
"""
