#!/bin/sh
# What Windows has in a virtual environment's place of Python: a launcher, whose child is the real one.
"$PREFORK_TESTS_PYTHON" "$@"
exit $?
